"""`dashboard`: the Ray clusters of this machine, their runs, and the token."""

import json
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import end_family, trainers, wait_for


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, in which no Ray has left a token."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def run_grid(command, tmp_path, world_folder):
    """Starts a long grid of a name, and returns the process when it trains."""
    experiment = {
        "environment": "diffuse_mix",
        "settings": {"td3_bc": {"hidden_sizes": [32], "batch_size": 32}},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"quality": "random", "episodes": 2},
        "training": {"max_timesteps": 10_000_000, "evaluation_interval": 1_000, "compile": "off"},
        "evaluation": {"validation_users": 2, "test_users": 2},
        "resources": {"cpu": 0.5},
    }
    (tmp_path / "long.yaml").write_text(json.dumps(experiment))
    started = []

    def start(name):
        process = command("grid", "long.yaml", "--name", name, start=True)
        started.append(process)
        wait_for(lambda: trainers(process), process)
        return process

    yield start
    for process in started:
        end_family(process)


def test_no_ray_is_one_line(command, home, tmp_path):
    """In name spaces of its own, where no other process is seen."""
    script = Path(__file__).parents[2] / "run_tune.py"
    line = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, str(script), "dashboard"]
    if subprocess.run([*line[:4], "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can hide the other processes")
    done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: no Ray runs on this machine. `run_tune.py grid tune_configs/demo.yaml` starts one; --address HOST:PORT "
        "names the head of a cluster elsewhere."
    ]


def test_addresses_that_lead_nowhere(command, home, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as mute:
        port = mute.getsockname()[1]
        cases = {
            "nonsense": "--address nonsense: expected HOST:PORT",
            "http://127.0.0.1:8265": "--address http://127.0.0.1:8265: expected HOST:PORT",
            "127.0.0.1:1": "--address 127.0.0.1:1: cannot join this cluster (Connection refused)",
            f"127.0.0.1:{port}": f"Ray at 127.0.0.1:{port}: there is no token here",
            f"localhost:{port}": f"Ray at localhost:{port}: does not answer",
        }
        for address, message in cases.items():
            if address.startswith("localhost"):
                monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
            begun = time.monotonic()
            done = command("dashboard", "--address", address, timeout=60)
            assert done.returncode == 2, done.stdout + done.stderr
            (line,) = done.stderr.splitlines()
            assert line.startswith(f"error: {message}")
            assert time.monotonic() - begun < 25, "a few seconds where the machine has no other work"


@pytest.mark.slow
def test_every_run_of_the_machine_is_listed(command, home, run_grid, tmp_path, monkeypatch):
    for name in ("one", "other"):
        run_grid(name)
    path = home / ".ray" / "auth_token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "the run has made it private"
    path.chmod(0o644)
    done = command("dashboard")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    found = dict(re.findall(r"^Ray dashboard of (\S+): (http://127\.0\.0\.1:\d+)$", done.stdout, re.MULTILINE))
    assert {Path(folder).name for folder in found} >= {"one", "other"}
    assert {str(tmp_path / "runs" / name) for name in ("one", "other")} <= set(found)
    (text,) = re.findall(r"^Token: (\S+)$", done.stdout, re.MULTILINE)
    assert text == path.read_text()
    assert f"It is the content of {path}, which only you can read." in done.stdout
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    url = found[str(tmp_path / "runs" / "one")]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{url}/api/jobs/")
    asked = urllib.request.Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {text}"})
    with urllib.request.urlopen(asked) as answer:
        (job,) = json.load(answer)
    assert job["metadata"]["run_folder"] == str(tmp_path / "runs" / "one")


@pytest.mark.slow
def test_a_cluster_by_its_address(command, home, run_grid, tmp_path, monkeypatch):
    process = run_grid("one")
    lines = [" ".join(child.cmdline()) for child in psutil.Process(process.pid).children(recursive=True)]
    address = next(match[1] for line in lines if (match := re.search(r"--gcs-address=([\d.:]+)", line)))
    seen = tmp_path / "opened"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    done = command("dashboard", "--address", address)
    assert done.returncode == 0, done.stdout + done.stderr
    (url,) = re.findall(rf"^Ray dashboard of {tmp_path}/runs/one: (\S+)$", done.stdout, re.MULTILINE)
    assert seen.read_text().strip() == url, "the browser was told"

    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    refused = command("dashboard", "--address", address)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: Ray at {address}: takes another token than yours")
    monkeypatch.delenv("RAY_AUTH_TOKEN")

    mine = tmp_path / "token"
    mine.write_text((home / ".ray" / "auth_token").read_text())
    mine.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(mine))
    open_to_all = command("dashboard", "--address", address)
    assert f"{mine}, which others can read too: make it private by `chmod 600 {mine}`." in open_to_all.stdout
    assert stat.S_IMODE(mine.stat().st_mode) == 0o644, "a file that the user has chosen stays"
