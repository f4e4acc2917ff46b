"""Runs on several nodes: what they find out before they start, where they train, what they do when a node is lost."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pandas as pd
import psutil
import pytest
import ray

import gems_ray
from tests.integration.conftest import end_family, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RAY = Path(sys.executable).parent / "ray"
ENVIRONMENT = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


class Nodes:
    """Nodes of a cluster, each the processes of one `ray start --block` on this machine."""

    def __init__(self):
        self.processes = []

    def start(self, *arguments, before=(), environment=None):
        """Starts one; returns the address of the cluster where it is the head."""
        line = [*before, str(RAY), "start", "--block", "--num-cpus=1", *arguments]
        node = subprocess.Popen(
            line,
            env={**os.environ, **ENVIRONMENT, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(node)
        shown = []
        for text in node.stdout:
            shown.append(text)
            if match := re.search(r"--address='([\d.:]+)'", text):
                return match[1]
            if "--block" in text:  # the last line of a node that has joined
                return None
        return pytest.fail("".join(shown))

    def pids(self, node):
        """Processes of a node at this moment."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return {child.pid for child in psutil.Process(self.processes[node].pid).children(recursive=True)}
        return set()

    def kill(self):
        for node in reversed(self.processes):
            end_family(node)


@contextlib.contextmanager
def cluster():
    """No node yet; ends all of them."""
    subprocess.run(
        [RAY, "get-auth-token", "--generate"], env={**os.environ, **ENVIRONMENT}, capture_output=True, check=True
    )
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.kill()


@pytest.fixture
def nodes():
    with cluster() as started:
        yield started


@pytest.fixture
def start_node(nodes):
    return nodes.start


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


EXPERIMENT = {
    "environment": "diffuse_mix",
    "seed": [0, 1, 2, 3, 4, 5],
    "settings": {"td3_bc": {"hidden_sizes": [32, 32], "batch_size": 64}},
    "dataset": {"quality": "random", "episodes": 300},
    "training": {"max_timesteps": 3000, "evaluation_interval": 500},
    "evaluation": {"validation_users": 5, "test_users": 10},
}
COLUMNS = ["cell", "status", "updates", "last_return", "best_return", "best_updates", "validation_best", "q_policy"]


class Undisturbed:
    """A grid of six cells that has run on three nodes of two CPUs each; nothing disturbed it.

    Args:
        folder: where it ran, with the experiment file and the dataset.
        nodes: where it ran, still alive.
        address: of them.
        pids: processes of each node, over the whole run.
        received: bytes that each node has received from others when the run had ended.
    """

    def __init__(self, folder, nodes, address, pids, received):
        self.folder, self.nodes, self.address, self.pids, self.received = folder, nodes, address, pids, received
        self.run = folder / "runs" / "grid"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, world_folder, request):
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "grid.yaml").write_text(json.dumps({**EXPERIMENT, "worlds": {"diffuse_mix": str(world_folder)}}))
    with cluster() as nodes:
        ports = [free_port() for _ in range(3)]
        address = nodes.start("--head", "--port=0", "--num-cpus=2", f"--metrics-export-port={ports[0]}")
        for port in ports[1:]:
            nodes.start("--address", address, "--num-cpus=2", f"--metrics-export-port={port}")
        line = [sys.executable, request.config.rootpath / "run_tune.py", "grid", "grid.yaml", "--address", address]
        output = (folder / "output.txt").open("w+")
        process = subprocess.Popen(
            line, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=output, stderr=subprocess.STDOUT
        )
        pids = [set(), set(), set()]
        while process.poll() is None:
            for node, seen in enumerate(pids):
                seen |= nodes.pids(node)
            time.sleep(0.2)
        assert process.returncode == 0, (folder / "output.txt").read_text()
        yield Undisturbed(folder, nodes, address, pids, [settled(lambda port=port: received(port)) for port in ports])


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def received(port):
    """Bytes of objects that a node has received from others, by its own count."""
    with urllib.request.urlopen(f"http://{ray.util.get_node_ip_address()}:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("ray_object_manager_bytes") and 'Type="Received"' in line]
    return sum(float(line.split()[-1]) for line in counts)


def settled(ask, seconds=15):
    """A count that is reported every few seconds: what it is when it has not changed for so long."""
    value, since = ask(), time.monotonic()
    while time.monotonic() - since < seconds:
        time.sleep(1)
        if (now := ask()) != value:
            value, since = now, time.monotonic()
    return value


def trained_on(run, pids):
    """Node of every cell: that of the process that Tune has noted in the reports."""
    places = {}
    for report in run.glob("checkpoints/*/*/result.json"):
        row = json.loads(report.read_text().splitlines()[-1])
        places[row["config"]["cell"]] = next((node for node, seen in enumerate(pids) if row["pid"] in seen), None)
    return places


def test_cells_are_trained_on_every_node(undisturbed):
    places = trained_on(undisturbed.run, undisturbed.pids)
    assert len(places) == 6
    assert set(places.values()) == {0, 1, 2}, places
    assert set(pd.read_csv(undisturbed.run / "cells.csv")["status"]) == {"finished"}


def test_the_dataset_is_sent_to_each_node_once(undisturbed):
    """Two cells of a node share one copy; the head's node has it from the driver."""
    (file,) = (undisturbed.folder / "offline_datasets").glob("*.npz")
    size = gems_ray.load_dataset(file).for_training().nbytes
    places = list(trained_on(undisturbed.run, undisturbed.pids).values())
    assert size > 5e6, "much more than all else that is sent"
    assert undisturbed.received[0] < 0.2 * size
    for node in (1, 2):
        assert places.count(node) >= 2
        assert size <= undisturbed.received[node] < 1.2 * size, (node, size, undisturbed.received)


def test_a_node_that_is_killed_is_replaced(command, undisturbed, nodes, tmp_path):
    for name in ("grid.yaml", "offline_datasets"):
        source = undisturbed.folder / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    run = tmp_path / "runs" / "grid"
    address = nodes.start("--head", "--port=0", "--include-dashboard=false", "--num-cpus=0")
    for _ in range(2):
        nodes.start("--address", address, "--num-cpus=2")
    process = command("grid", "grid.yaml", "--address", address, start=True)
    wait_for(lambda: len(list(run.glob("cells/*/checkpoint.json"))) >= 3, process)
    end_family(nodes.processes[1])  # with -9
    nodes.start("--address", address, "--num-cpus=2")
    late = set()
    while process.poll() is None:
        late |= nodes.pids(3)
        time.sleep(0.2)
    output = process.stdout.read()
    assert process.returncode == 0, output
    assert "retried" in output, "cells were lost with the node"
    assert 3 in trained_on(run, [set(), set(), set(), late]).values()
    frames = [pd.read_csv(folder / "cells.csv")[COLUMNS] for folder in (run, undisturbed.run)]
    pd.testing.assert_frame_equal(*frames)


def test_gpus_that_only_other_nodes_have(command, grid, nodes, tmp_path):
    """Logical ones: where Ray places a cell does not depend on whether CUDA is there."""
    address = nodes.start("--head", "--port=0", "--include-dashboard=false", "--num-cpus=3", "--num-gpus=0")
    nodes.start("--address", address, "--num-cpus=7", "--num-gpus=1")
    nodes.start("--address", address, "--num-cpus=3", "--num-gpus=0")
    data = json.loads((tmp_path / grid).read_text())
    (tmp_path / grid).write_text(json.dumps({**data, "seed": [0, 1, 2, 3], "resources": {"cpu": 1, "gpu": 0.5}}))

    planned = command("plan", grid, "--address", address)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    said = " ".join(planned.stdout.split())
    assert f"cluster at {address}: 3 nodes: 2 with 3 CPUs and 0 GPUs, 1 with 7 CPUs and 1 GPU" in said
    assert "cells: 4, of which 0 have ended; 2 run at once" in said
    assert "No GPU here to measure on" in said
    assert "is ignored" not in said, "as it is where no node has one"
    assert "memory: about" in said and "on all nodes together" in said

    process = command("grid", grid, "--address", address, start=True)
    pids = [set(), set(), set()]
    while process.poll() is None:
        for node, seen in enumerate(pids):
            seen |= nodes.pids(node)
        time.sleep(0.1)
    output = process.stdout.read()
    assert process.returncode == 0, output
    assert list(trained_on(tmp_path / "runs" / "grid", pids).values()) == [1, 1, 1, 1]
