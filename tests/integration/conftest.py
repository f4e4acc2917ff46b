"""Real processes: the command line as a user starts it."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import boto3
import psutil
import pytest
import yaml


def wait_for(condition, process, seconds=120):
    """Waits until `condition()` holds while the process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trained_rows(run):
    """Evaluations so far, over all cells."""
    return sum(len(path.read_text().splitlines()) - 1 for path in run.glob("cells/*/metrics.csv"))


def wait_for_rows(run, more, process):
    """Waits until the process, which has just been started, has added so many evaluations."""
    before = trained_rows(run)
    wait_for(lambda: trained_rows(run) >= before + more, process)


def change_pack(run, size):
    """Says in a run folder how many cells are trained as one program from now on."""
    file = run / "experiment.yaml"
    experiment = yaml.safe_load(file.read_text())
    experiment["resources"]["pack"] = size
    file.write_text(yaml.safe_dump(experiment))


def end_family(process):
    """Kills a process, and what it has started, as a reboot does."""
    with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
        driver = psutil.Process(process.pid)
        family = driver.children(recursive=True)
        for member in (driver, *family):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=30)
    process.wait()


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


def trainers(process):
    """The processes of a driver that train cells at this moment."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "ray::" in (line := " ".join(child.cmdline())) and ("seed" in line or "OfflineRL" in line):
                    found.append(child)
    return found


@pytest.fixture(scope="module")
def s3():
    """The address of a server that speaks the S3 protocol, with an empty bucket `bucket`."""
    keys = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: answers(port), server)
            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}").create_bucket(Bucket="bucket")
            yield f"127.0.0.1:{port}"
        finally:
            server.kill()
            server.wait()


def answers(port):
    with socket.socket() as asked:
        return asked.connect_ex(("127.0.0.1", port)) == 0
