"""What a run finds out of the nodes of a cluster before it starts."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

RAY = Path(sys.executable).parent / "ray"
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def start_node():
    """Starts nodes of a cluster, each a process of `ray start --block`; yields what starts one."""
    subprocess.run(
        [RAY, "get-auth-token", "--generate"], env={**os.environ, **ENVIRONMENT}, capture_output=True, check=True
    )
    started = []

    def start(*arguments, before=(), environment=None):
        line = [*before, str(RAY), "start", "--block", "--num-cpus=1", *arguments]
        node = subprocess.Popen(
            line,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(node)
        shown = []
        for text in node.stdout:
            shown.append(text)
            if match := re.search(r"--address='([\d.:]+)'", text):
                return match[1]
            if "--block" in text:  # the last line of a node that has joined
                return None
        pytest.fail("".join(shown))

    yield start
    for node in reversed(started):
        for process in (*psutil.Process(node.pid).children(recursive=True), node):
            process.kill()
        node.wait()


@pytest.fixture
def grid(tmp_path, world_folder):
    """An experiment file."""
    experiment = {
        "environment": "diffuse_mix",
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"quality": "random", "episodes": 2},
        "training": {"max_timesteps": 10},
        "evaluation": {"validation_users": 2, "test_users": 2},
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(experiment))
    return "grid.yaml"


def test_a_node_that_does_not_see_the_folder(command, grid, tmp_path, start_node):
    """Its disk is its own: a file system of its own lies over the folder."""
    hide = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs tmpfs "{tmp_path}" && exec "$@"', "hide"]
    if subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can hide a folder from a process")
    address = start_node("--head", "--port=0", "--include-dashboard=false")
    start_node("--address", address, before=hide)
    done = command("grid", grid, "--address", address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"error: node [\d.]+: does not see \S+/runs/grid/checkpoints, where the checkpoints", done.stderr)
    assert "s3://bucket/runs" in done.stderr
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_node_with_another_version(command, grid, tmp_path, start_node):
    other = tmp_path / "other" / "torch-9.9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    address = start_node("--head", "--port=0", "--include-dashboard=false")
    start_node("--address", address, environment={"PYTHONPATH": str(other.parent)})
    done = command("grid", grid, "--address", address)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"error: node [\d.]+: has gems_ray \S+, torch 9\.9\.9, this machine has gems_ray", done.stderr)
    assert len([line for line in done.stderr.splitlines() if line]) == 1
