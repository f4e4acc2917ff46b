"""Real processes: the command line as a user starts it."""

import os
import subprocess
import sys

import pytest


@pytest.fixture
def command(tmp_path, request):
    """Runs `run_tune.py` in an empty folder; returns the finished process with its output."""

    def run(*arguments, start=False, timeout=240):
        script = str(request.config.rootpath / "run_tune.py")
        line = [sys.executable, script, *map(str, arguments)]
        environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
        if start:
            return subprocess.Popen(
                line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        return subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run
