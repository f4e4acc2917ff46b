"""The files of deploy/ at work, as far as one machine can go: real Ray, real runs."""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from tests.integration.conftest import end_family, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Stand-ins for Slurm: every node is this machine. `srun` hands a signal on to its tasks, and kills what they leave
# behind, as the real one does.
SCONTROL = '#!/bin/sh\necho "$3" | tr , "\\n"\n'
SRUN = """
import itertools, signal, subprocess, sys, time
import psutil

options = list(itertools.takewhile(lambda word: word.startswith("-"), sys.argv[1:]))
count = next((int(option[9:]) for option in options if option.startswith("--ntasks=")), 1)
tasks = [subprocess.Popen(sys.argv[len(options) + 1 :]) for _ in range(count)]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
left = set()
while any(task.poll() is None for task in tasks):
    left |= set(psutil.Process().children(recursive=True))
    time.sleep(0.1)
for process in left:
    if process.is_running():
        process.kill()
"""


@pytest.fixture
def submit(tmp_path):
    """Starts the job script as Slurm does on the first node of an allocation; returns its process."""
    tools = tmp_path / "slurm"
    tools.mkdir()
    # The command of an installed package, with the code of this checkout.
    gems_ray = f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "run_tune.py"}" "$@"\n'
    srun = f"#!{sys.executable}{SRUN}"
    for name, text in (("scontrol", SCONTROL), ("srun", srun), ("gems-ray", gems_ray)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    jobs = []

    def start(*words, nodes):
        environment = {
            **os.environ,
            "PATH": f"{tools}:{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_CPUS_PER_TASK": "1",
        }
        job = subprocess.Popen(
            ["bash", ROOT / "deploy" / "slurm.sh", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        jobs.append(job)
        return job

    yield start
    for job in jobs:
        end_family(job)


@pytest.fixture
def experiment(tmp_path, world_folder):
    """Writes an experiment file, and returns its name."""

    def write(updates, **changes):
        data = {
            "environment": "diffuse_mix",
            "worlds": {"diffuse_mix": str(world_folder)},
            "seed": [0, 1],
            "settings": {"td3_bc": {"hidden_sizes": [32, 32], "batch_size": 64}},
            "dataset": {"quality": "random", "episodes": 5, "folder": str(tmp_path / "offline_datasets")},
            "training": {"max_timesteps": updates, "evaluation_interval": 500},
            "evaluation": {"validation_users": 5, "test_users": 5},
        }
        (tmp_path / "grid.yaml").write_text(json.dumps({**data, **changes}))
        return "grid.yaml"

    return write


def family(job):
    return psutil.Process(job.pid).children(recursive=True)


def test_a_job_of_two_nodes_runs_a_grid_and_ends_ray(submit, experiment, tmp_path):
    job = submit("grid", experiment(100), nodes="n1,n2")
    shown, started = [], []
    for line in job.stdout:
        shown.append(line)
        started = family(job) or started
    output = "".join(shown)
    assert job.wait(60) == 0, output
    assert output.count("This node has an IP") + output.count("Local node IP") == 2, output
    assert re.search(r"Joining Ray at [\d.]+:2\d{4} \.\.\.", output), output
    assert set(pd.read_csv(tmp_path / "runs" / "grid" / "cells.csv")["status"]) == {"finished"}
    assert started
    assert not psutil.wait_procs(started, timeout=20)[1], "nothing is left of Ray"


def test_the_exit_code_of_the_run_is_that_of_the_job(submit, experiment):
    job = submit("grid", experiment(100, resources={"cpu": 64}), nodes="n1")
    output, _ = job.communicate(timeout=200)
    assert job.returncode == 2, output
    assert "a cell asks for 64 CPUs" in output


def test_the_signal_before_the_time_limit_saves_the_run(submit, experiment, tmp_path):
    run = tmp_path / "runs" / "grid"
    job = submit("grid", experiment(200_000), nodes="n1")
    wait_for(lambda: any(run.glob("cells/*/checkpoint.json")), job)
    started = family(job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 130, output
    assert "everything is saved. Continue with:" in output
    assert "unfinished" in set(pd.read_csv(run / "cells.csv")["status"])
    assert not psutil.wait_procs(started, timeout=20)[1], "nothing is left of Ray"


def test_the_signal_while_ray_starts_ends_the_job(submit, experiment, tmp_path):
    job = submit("grid", experiment(100), nodes="n1,n2")
    wait_for(lambda: any("raylet" in process.name() for process in family(job)), job)
    started = family(job)
    job.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=100)
    assert job.returncode == 143, output
    assert not (tmp_path / "runs").exists()
    assert not psutil.wait_procs(started, timeout=20)[1], "nothing is left of Ray"


@pytest.fixture
def short_folder():
    """A folder whose path leaves room for the names of Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        yield name


def test_what_the_ray_job_submits_runs_on_a_head(experiment, tmp_path, short_folder):
    """Its entrypoint and its environment, through Ray's own job server: only the storage is another one."""
    spec = yaml.safe_load((ROOT / "deploy" / "rayjob.yaml").read_text())["spec"]
    words = shlex.split(spec["entrypoint"])
    words[words.index("--storage") + 1] = f"file://{tmp_path}/storage"
    words[words.index("/experiments/grid.yaml")] = str(tmp_path / experiment(100))
    words[0:1] = [sys.executable, str(ROOT / "run_tune.py")]
    (tmp_path / "environment.yaml").write_text(spec["runtimeEnvYAML"])
    with socket.socket() as one, socket.socket() as other:
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
        port, agent = one.getsockname()[1], other.getsockname()[1]
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "AWS_ACCESS_KEY_ID": "mine"}
    subprocess.run([BIN / "ray", "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    (tmp_path / "head").mkdir()
    head = subprocess.Popen(
        [
            *[BIN / "ray", "start", "--head", "--block", "--port=0", "--num-cpus=1"],
            # Of their own: the agent of another Ray on this machine would keep this one from taking jobs, and in a
            # common folder `auto` is the Ray that was started last.
            *[f"--dashboard-port={port}", f"--dashboard-agent-listen-port={agent}", f"--temp-dir={short_folder}"],
        ],
        cwd=tmp_path / "head",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        job = [BIN / "ray", "job", "submit", "--address", f"http://127.0.0.1:{port}"]
        job += ["--runtime-env", tmp_path / "environment.yaml", "--", *words]
        answers = []

        def answered():  # its agents need some seconds more than the dashboard
            answers.append(subprocess.run(job, env=environment, capture_output=True, text=True, check=False))
            return not re.search("No available agent|Failed to connect", answers[-1].stderr)

        wait_for(answered, head)
        done = answers[-1]
        assert done.returncode == 0, done.stdout + done.stderr
        records = tmp_path / "head" / "runs" / "grid"  # below the working directory of the head's container
        assert set(pd.read_csv(records / "cells.csv")["status"]) == {"finished"}
        assert list((tmp_path / "storage" / "grid").rglob("*.safetensors"))
    finally:
        end_family(head)


def test_what_the_dockerfile_copies_is_enough_for_the_wheel(tmp_path):
    text = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = [word for words in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE) for word in words.split()]
    assert "gems_ray" in copied
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", "."]
    subprocess.run(build, cwd=tmp_path, capture_output=True, check=True)
    listed = [sys.executable, "-m", "zipfile", "-l", next((tmp_path / "wheels").iterdir())]
    names = subprocess.run(listed, capture_output=True, text=True, check=True).stdout
    assert "gems_ray/tune_configs/demo.yaml" in names
    assert "gems_ray/world/shipped/diffuse_mix/weights.safetensors" in names
