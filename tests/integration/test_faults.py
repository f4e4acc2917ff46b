"""Runs that are killed at random moments, and whose files are torn, end with the table of a run that nothing disturbed.

Slow: `make test-faults`, with FAULT_SEED=N for other moments. A short version is in test_grid.py and test_search.py.
"""

import contextlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
import yaml

from tests.integration.conftest import end_family, trainers, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SEED = int(os.environ.get("FAULT_SEED", "20261"))
# What a run must come to, however often it was killed.
COLUMNS = ["seed", "status", "updates", "last_return", "best_return", "best_updates", "validation_best", "q_policy"]
EXPERIMENT = {
    "environment": ["diffuse_mix"],
    "algorithm": "td3_bc",
    "seed": [0, 1, 2, 3],
    "settings": {"td3_bc": {"hidden_sizes": [32, 32], "batch_size": 64}},
    "dataset": {"quality": "mixed", "episodes": 20},
    "training": {"max_timesteps": 20_000, "evaluation_interval": 2000},
    "evaluation": {"validation_users": 10, "test_users": 20},
    "resources": {"cpu": 1},
}
SEARCH = {
    "trials": 4,
    "sampler": "random",
    "space": {"td3_bc": {"alpha": {"log_uniform": [0.1, 10]}}},
    "confirm": {"candidates": 1, "seeds": 1},
}


killed: list[tuple[str, str]] = []  # storage, and what was alive when it was killed, over all tests of this file


class Killer(random.Random):
    """Draws the moments, and prints every kill with the seed that it came from.

    Args:
        test: name of the test, which makes the seed a different one for each.
        captured: what pytest keeps from the terminal.
    """

    def __init__(self, test, captured):
        super().__init__(f"{SEED} {test}")
        self._test, self._captured = test, captured

    def note(self, victim, storage="folder"):
        killed.append((storage, victim))
        with self._captured.disabled():
            sys.stdout.write(f"kill {len(killed)}: {victim}, checkpoints in a {storage}, seed {SEED}, {self._test}\n")


@pytest.fixture
def rng(request, capfd):
    return Killer(request.node.name, capfd)


@pytest.fixture
def write(tmp_path, world_folder):
    """Writes an experiment file, and returns its name."""

    def write_file(name, **changes):
        data = {**EXPERIMENT, "worlds": {"diffuse_mix": str(world_folder)}, **changes}
        (tmp_path / name).write_text(yaml.safe_dump(data))
        return name

    return write_file


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, world_folder, request):
    """Tables of the grid and of the search when nothing disturbs them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    worlds = {"diffuse_mix": str(world_folder)}
    (folder / "grid.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "worlds": worlds}))
    (folder / "search.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "worlds": worlds, "seed": 0, "search": SEARCH}))
    for command in ("grid", "search"):
        line = [sys.executable, str(request.config.rootpath / "run_tune.py"), command, f"{command}.yaml"]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=400, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def assert_same_table(run, expected):
    cells, undisturbed = (pd.read_csv(folder / "cells.csv") for folder in (run, expected))
    assert sorted(cells["cell"]) == sorted(set(cells["cell"])), "each cell once"
    pd.testing.assert_frame_equal(
        cells.set_index("cell").sort_index()[COLUMNS], undisturbed.set_index("cell").sort_index()[COLUMNS]
    )
    for path in run.glob("cells/*/metrics.csv"):
        updates = pd.read_csv(path)["updates"]
        assert updates.is_monotonic_increasing and updates.is_unique, "nothing is counted twice"


def wait_for_a_random_moment(process, run, rng):
    """Until something is being trained, and then some seconds more."""
    deadline = time.monotonic() + 120
    while process.poll() is None and not trainers(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.uniform(0.5, 6))


def tear_a_file(run, rng):
    """Cuts off a file at a random place, as a power failure does."""
    names = ("metrics.csv", "checkpoint.json", "result.json", "log.txt", "cell.yaml")
    torn = [path for name in names for path in run.glob(f"cells/*/{name}")] + list(run.glob("study.db"))
    torn += run.glob("checkpoints/*/*/*/*.safetensors")
    if torn:
        path = rng.choice(sorted(torn))
        content = path.read_bytes()
        path.write_bytes(content[: rng.randrange(len(content) + 1)])
    for path in run.glob("checkpoints/*/*.pkl"):
        path.write_bytes(b"")


def kill_a_trainer(process, rng):
    if found := trainers(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            rng.choice(found).kill()
            rng.note("worker")


def reports(run):
    """Evaluations so far, over all cells."""
    return sum(len(path.read_text().splitlines()) for path in run.glob("cells/*/metrics.csv"))


def finish(command, run):
    done = command("resume", run, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def kill_the_driver(command, first, run, rng, times, storage="folder"):
    """Starts a run and kills its driver, alone or with all that it has started, so many times."""
    for _ in range(times):
        process = command(*(["resume", run] if (run / "experiment.yaml").exists() else first), start=True)
        wait_for_a_random_moment(process, run, rng)
        alone = rng.random() < 0.5  # what it has started is left to notice by itself
        if process.poll() is None:
            rng.note("driver" if alone else "session", storage)
        if alone:
            process.kill()
            process.wait()
        else:
            end_family(process)
        if (run / "cells").exists():
            tear_a_file(run, rng)


def test_grid_whose_driver_is_killed_twenty_times(command, write, tmp_path, undisturbed, rng):
    run = tmp_path / "runs" / "grid"
    kill_the_driver(command, ["grid", write("grid.yaml")], run, rng, 20)
    finish(command, run)
    assert_same_table(run, undisturbed / "grid")


def test_grid_with_checkpoints_in_a_bucket_whose_driver_is_killed_twelve_times(
    command, write, tmp_path, undisturbed, rng, s3
):
    run = tmp_path / "runs" / "grid"
    uri = f"s3://bucket/runs?endpoint_override={s3}&scheme=http"
    kill_the_driver(command, ["grid", write("grid.yaml"), "--storage", uri], run, rng, 12, "bucket")
    finish(command, run)
    assert not list(run.rglob("*.safetensors")), "checkpoints are in the bucket alone"
    assert_same_table(run, undisturbed / "grid")


def test_grid_whose_workers_are_killed_sixteen_times(command, write, tmp_path, undisturbed, rng):
    run = tmp_path / "runs" / "grid"
    process = command("grid", write("grid.yaml"), start=True)
    for _ in range(16):
        wait_for_a_random_moment(process, run, rng)
        kill_a_trainer(process, rng)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "Traceback" not in output
    assert_same_table(run, undisturbed / "grid")


def test_search_whose_driver_and_workers_are_killed(command, write, tmp_path, undisturbed, rng):
    run = tmp_path / "runs" / "search"
    first = ["search", write("search.yaml", seed=0, search=SEARCH)]
    for attempt in range(8):
        process = command(*(["resume", run] if (run / "experiment.yaml").exists() else first), start=True)
        wait_for_a_random_moment(process, run, rng)
        if attempt % 2:
            kill_a_trainer(process, rng)
            wait_for_a_random_moment(process, run, rng)
        if process.poll() is None:
            rng.note("session")
        end_family(process)
        if (run / "cells").exists():
            tear_a_file(run, rng)
    finish(command, run)
    assert_same_table(run, undisturbed / "search")
    tables = [pd.read_csv(folder / "trials.csv") for folder in (run, undisturbed / "search")]
    pd.testing.assert_frame_equal(*tables)


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
print(cluster.address, flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes.pop(int(line) % len(nodes)), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1))
    print("killed", flush=True)
cluster.shutdown()
"""


def test_grid_whose_nodes_are_lost_eight_times(command, write, tmp_path, undisturbed, rng):
    run = tmp_path / "runs" / "grid"
    subprocess.run(
        [Path(sys.executable).parent / "ray", "get-auth-token", "--generate"],
        env={**os.environ, "RAY_AUTH_MODE": "token"},
        capture_output=True,
        check=True,
    )
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        address = cluster.stdout.readline().strip()
        process = command("grid", write("grid.yaml"), "--address", address, start=True)
        for _ in range(8):
            rows = reports(run)
            wait_for(lambda rows=rows: process.poll() is not None or reports(run) > rows, cluster)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, 3))
            if process.poll() is not None:
                break
            cluster.stdin.write(f"{rng.randrange(2)}\n")
            cluster.stdin.flush()
            assert cluster.stdout.readline().strip() == "killed"
            rng.note("node")
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output
        assert "Traceback" not in output
        assert_same_table(run, undisturbed / "grid")
    finally:
        end_family(cluster)


def test_full_disk(command, write, tmp_path, undisturbed):
    """Nothing is lost when the disk is full, and the run goes on when there is room again."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small file system can only be mounted by root")
    try:
        full = command("grid", write("grid.yaml"), "--storage", disk, timeout=400)
        assert full.returncode in (1, 2), full.stdout + full.stderr
        assert "No space left on device" in full.stdout + full.stderr
        assert "Traceback" not in full.stdout + full.stderr
        subprocess.run(["mount", "-o", "remount,size=200m", disk], check=True)
        finish(command, disk / "grid")
        assert_same_table(disk / "grid", undisturbed / "grid")
    finally:
        subprocess.run(["umount", "-l", disk], check=False)


@pytest.mark.parametrize("lost", ["raylet", "gcs_server"])
def test_ray_itself_is_killed(command, write, tmp_path, undisturbed, lost, rng):
    """One line that says how to go on, exit code 1, and nothing is left running."""
    run = tmp_path / "runs" / "grid"
    process = command("grid", write("grid.yaml"), start=True)
    wait_for(lambda: reports(run) > 4, process)
    family = psutil.Process(process.pid).children(recursive=True)
    (victim,) = (member for member in family if member.name() == lost)
    victim.kill()
    rng.note(lost)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1, output
    assert "Traceback" not in output
    assert f"Continue with:\n  python run_tune.py resume {run.relative_to(tmp_path)}" in output
    assert not psutil.wait_procs(family, timeout=10)[1]
    finish(command, run)
    assert_same_table(run, undisturbed / "grid")


def test_ray_is_killed_while_it_starts(command, write, tmp_path):
    process = command("grid", write("grid.yaml"), start=True)

    def raylets():
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if child.name() == "raylet"]

    wait_for(raylets, process)
    family = psutil.Process(process.pid).children(recursive=True)
    raylets()[0].kill()
    output, _ = process.communicate(timeout=120)
    assert process.returncode in (1, 2), output
    assert "error: " in output
    assert "Please report" not in output
    assert "Traceback" not in output
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_enough_was_killed():
    """Last in the file: what was alive when the tests above killed it."""
    assert len(killed) >= 60, killed
    assert {victim for _, victim in killed} == {"driver", "session", "worker", "node", "raylet", "gcs_server"}
    assert sum(storage == "bucket" for storage, _ in killed) >= 10
