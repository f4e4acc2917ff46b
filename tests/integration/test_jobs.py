"""Runs that are submitted to a real cluster: followed, left, stopped, failing, and two at once."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).parent / "ray"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The dashboard of a cluster of two CPUs, which knows nothing of this checkout but its packages."""
    environment = {**os.environ, **ENVIRONMENT}
    environment.pop("PYTHONPATH", None)
    subprocess.run([RAY, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ports = ["--port=0", f"--dashboard-port={port}", "--dashboard-agent-listen-port=0"]  # other clusters may be here
    line = [RAY, "start", "--head", "--block", "--num-cpus=2", *ports]
    where = tmp_path_factory.mktemp("cluster")
    with (where / "ray.txt").open("w") as output:
        head = subprocess.Popen(line, env=environment, cwd=where, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while "--block" not in (where / "ray.txt").read_text():
        assert head.poll() is None, (where / "ray.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}"
    for process in (*psutil.Process(head.pid).children(recursive=True), head):
        process.kill()
    head.wait()


@pytest.fixture
def home(tmp_path):
    """Folder on the cluster that submitted runs work in."""
    return tmp_path / "home of the runs"


@pytest.fixture
def submit(command, address, home):
    """Submits a command; returns the finished client, or the process with `start`."""
    return lambda *words, start=False: command(
        "submit", "--address", address, "--folder", home, "--", *words, start=start
    )


def write_grid(tmp_path, world_folder, name, **differences):
    """An experiment file that names its world by a relative path."""
    (tmp_path / "worlds").mkdir(exist_ok=True)
    if not (tmp_path / "worlds" / "mix").exists():
        subprocess.run(["cp", "-r", str(world_folder), str(tmp_path / "worlds" / "mix")], check=True)
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": "td3_bc",
        "settings": {"td3_bc": {"hidden_sizes": [16]}},
        "worlds": {"diffuse_mix": "worlds/mix"},
        "dataset": {"quality": "random", "episodes": 2},
        "training": {"max_timesteps": 20, "evaluation_interval": 10, "compile": "off"},
        "evaluation": {"validation_users": 2, "test_users": 2},
        **differences,
    }
    (tmp_path / name).write_text(json.dumps(experiment))
    return name


def job_of(text):
    """The name of the job that a client has printed."""
    return re.search(r"Submitted as (\S+)\.", text)[1]


def jobs_of(command, address):
    """State and exit code by job, from `jobs list`."""
    rows = command("jobs", "list", "--address", address).stdout.splitlines()[1:]
    return {row.split()[0]: row.split()[1:3] for row in rows}


def printed(process, text):
    """Reads what a client prints until a text stands in it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"{text} was not printed:\n{''.join(lines)}")


LONG = {"max_timesteps": 1_000_000, "evaluation_interval": 500, "compile": "off"}


def test_followed_to_the_end(submit, command, address, home, tmp_path, world_folder):
    grid = write_grid(tmp_path, world_folder, "small.yaml", seed=[0, 1])
    done = submit("grid", grid)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    assert re.search(r"td3_bc +\d+\.\d ± \d+\.\d", done.stdout), done.stdout
    job = job_of(done.stdout)
    assert done.stdout.rstrip().endswith(f"{job}: finished, exit code 0.")
    assert jobs_of(command, address)[job] == ["finished", "0"]
    log = command("jobs", "logs", job, "--address", address).stdout
    assert log in done.stdout
    assert "Run folder: runs/small" in log
    # The same numbers as here, from the world that travelled.
    here = command("grid", grid)
    assert here.returncode == 0, here.stderr
    cells = [(folder / "runs" / "small" / "cells.csv").read_text() for folder in (home, tmp_path)]
    rows = [[line.split(",")[:8] for line in text.splitlines()] for text in cells]
    assert rows[0] == rows[1]


def test_algorithm_of_the_users_own_travels(submit, home, tmp_path, world_folder):
    (tmp_path / "my_algorithms.py").write_text(
        "from gems_ray.algorithms.bc import BC\n\n\nclass Mine(BC):\n    name = 'mine'\n"
    )
    grid = write_grid(tmp_path, world_folder, "mine.yaml", algorithm="my_algorithms:Mine", settings={})
    os.environ["PYTHONPATH"] = str(tmp_path)  # as a user has it who wrote the module
    try:
        done = submit("grid", grid)
    finally:
        del os.environ["PYTHONPATH"]
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"mine +\d", done.stdout), done.stdout


def test_exit_code_of_a_run_that_fails(submit, tmp_path, world_folder):
    grid = write_grid(tmp_path, world_folder, "absent.yaml", dataset={"file": "/not/there.npz"})
    done = submit("grid", grid)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "error: /not/there.npz: no such dataset" in done.stdout
    assert "failed, exit code 2." in done.stdout


def test_client_that_is_killed_changes_nothing(submit, command, address, home, tmp_path, world_folder):
    grid = write_grid(tmp_path, world_folder, "kept.yaml", training={**LONG, "max_timesteps": 3000}, seed=[0, 1])
    client = submit("grid", grid, start=True)
    text = printed(client, "  running")
    client.kill()
    client.wait()
    following = command("jobs", "logs", job_of(text), "--follow", "--address", address)
    assert following.returncode == 0, following.stdout + following.stderr
    assert "[2/2]" in following.stdout
    assert len(list((home / "runs" / "kept" / "cells").glob("*/result.json"))) == 2


def test_stopped_and_resumed(submit, command, address, home, tmp_path, world_folder):
    grid = write_grid(tmp_path, world_folder, "stopped.yaml", training=LONG)
    client = submit("grid", grid, start=True)
    job = job_of(printed(client, "  running"))
    (cell,) = (home / "runs" / "stopped" / "cells").iterdir()
    wait_for((cell / "checkpoint.json").exists, client)
    stopped = command("jobs", "stop", job, "--address", address)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{job}: stopped" in stopped.stdout
    rest, _ = client.communicate(timeout=60)
    assert client.returncode == 1
    assert "1 unfinished; everything is saved" in rest
    saved = json.loads((cell / "checkpoint.json").read_text())["updates"]
    assert saved > 0
    # The command that it prints goes on, from any machine that reaches the cluster.
    words = re.search(r"gems-ray submit --folder (.+) -- resume (\S+)", rest)
    assert words[1].strip("'") == str(home)
    again = submit("resume", words[2], start=True)
    job = job_of(printed(again, "  running"))
    again.send_signal(signal.SIGINT)  # leaves the run alone
    rest, _ = again.communicate(timeout=60)
    assert again.returncode == 130
    assert f"jobs stop {job}" in rest
    assert jobs_of(command, address)[job][0] == "running"
    continued = re.findall(r"goes on after (\d+) updates", (cell / "log.txt").read_text())
    assert [int(updates) >= saved for updates in continued] == [True]
    command("jobs", "stop", job, "--address", address)


def test_two_runs_share_the_cluster(submit, command, address, home, tmp_path, world_folder):
    """The first one holds every place for hours; the second one gets half of them, and is not kept waiting."""
    first = submit("grid", write_grid(tmp_path, world_folder, "long.yaml", training=LONG, seed=[0, 1, 2]), start=True)
    job = job_of(printed(first, "  running"))
    printed(first, "  running")
    short = {**LONG, "max_timesteps": 2000}
    second = submit("grid", write_grid(tmp_path, world_folder, "short.yaml", training=short, seed=[0, 1]))
    assert second.returncode == 0, second.stdout + second.stderr
    text = printed(first, "  waiting (gave way to another run of the cluster)")
    assert "retried" not in text
    printed(first, "  running")  # and takes the place back
    command("jobs", "stop", job, "--address", address)
    first.communicate(timeout=60)
    logs = [file.read_text() for file in (home / "runs" / "long" / "cells").glob("*/log.txt")]
    assert any("gave way to another run" in log for log in logs)
    assert not any("set back" in log for log in logs)


def test_what_cannot_be_sent(submit, command, address, tmp_path, world_folder):
    grid = write_grid(tmp_path, world_folder, "grid.yaml")
    above = write_grid(
        tmp_path, world_folder, "above.yaml", worlds={"diffuse_mix": "../" + tmp_path.name + "/worlds/mix"}
    )
    for words, message in (
        (("grid", "absent.yaml"), r"absent.yaml: no such file"),
        (("plan", grid), r"submit: expected one of grid, search, resume, found `plan`"),
        (("grid",), r"submit: expected its experiment file right after `grid`"),
        (("grid", grid, "--address", "auto"), r"submit: the run joins the cluster that it is sent to"),
        (("grid", above), r"what a submitted run needs lies below the current folder"),
    ):
        done = submit(*words)
        assert done.returncode == 2, done.stdout
        assert re.search(f"^error: .*{message}", done.stderr), done.stderr
        assert "Submitted" not in done.stdout
    large = tmp_path / "large.npz"
    with large.open("wb") as file:
        file.truncate(100_000_001)
    done = submit("grid", write_grid(tmp_path, world_folder, "large.yaml", dataset={"file": "large.npz"}))
    assert done.returncode == 2
    assert "large.npz: with it 10" in done.stderr


def test_clusters_that_do_not_answer(command, address):
    for place, message in (
        ("http://127.0.0.1:1", "no cluster answers there"),
        ("127.0.0.1:1", "no cluster answers there"),
        ("ray://127.0.0.1:10001", "expected the URL of a dashboard"),
    ):
        done = command("jobs", "list", "--address", place)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert message in done.stderr
    os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 2
    try:
        done = command("jobs", "list", "--address", address)
    finally:
        del os.environ["RAY_AUTH_TOKEN"]
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "refuses the token" in done.stderr
    done = command("jobs", "logs", "nothing", "--address", address)
    assert done.returncode == 2
    assert "no submitted run is called `nothing` here" in done.stderr
