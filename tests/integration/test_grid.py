"""Grids on real Ray: the whole way, interruptions, lost processes, failures, an existing cluster."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from tests.integration.conftest import change_pack, trained_rows, wait_for, wait_for_rows

EXPERIMENT = """\
environment: [diffuse_mix]
algorithm: td3_bc
seed: [0, 1, 2]
settings:
  td3_bc: {{batch_size: 64, hidden_sizes: [32, 32]}}
worlds:
  diffuse_mix: {world}
dataset: {{quality: mixed, episodes: 20}}
training: {{max_timesteps: {updates}, evaluation_interval: 300}}
evaluation: {{validation_users: 10, test_users: 20}}
resources: {{cpu: {cpu}, gpu: 0.25}}
"""
# The results of the same cells, whoever ran them and however often they were interrupted.
COLUMNS = ["seed", "status", "updates", "last_return", "best_return", "best_updates", "validation_best"]


@pytest.fixture
def experiment(tmp_path, world_folder):
    """Writes an experiment file and returns its name."""

    def write(name, updates=600, cpu=1, **replacements):
        text = EXPERIMENT.format(world=world_folder, updates=updates, cpu=cpu)
        for old, new in replacements.items():
            text = text.replace(old, new)
        (tmp_path / name).write_text(text)
        return name

    return write


def cells(folder):
    return pd.read_csv(folder / "cells.csv")


def assert_same_results(first, second):
    pd.testing.assert_frame_equal(cells(first)[COLUMNS], cells(second)[COLUMNS])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, world_folder, request):
    """A long grid that nothing interrupts, for comparison."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "long.yaml").write_text(EXPERIMENT.format(world=world_folder, updates=4000, cpu=1))
    line = [sys.executable, str(request.config.rootpath / "run_tune.py"), "grid", "long.yaml", "--name", "long"]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "long"


def test_from_nothing_to_the_table(command, experiment, tmp_path):
    done = command("grid", experiment("small.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "small"
    assert (tmp_path / "offline_datasets" / "diffuse_mix_mixed.npz").is_file()
    assert re.search(r"Ray dashboard: http://127\.0\.0\.1:\d+", done.stdout)
    assert re.search(r"asks for a token: paste the content of \S+ there", done.stdout)
    assert "resources.gpu 0.25 is ignored" in done.stdout
    assert "Run folder: runs/small" in done.stdout
    table_lines = done.stdout.split("environment  algorithm")[1].splitlines()
    assert max(map(len, table_lines)) <= 80

    frame = cells(run)
    assert frame["seed"].tolist() == [0, 1, 2]
    assert set(frame["status"]) == {"finished"}
    assert set(frame["updates"]) == {600}
    assert np.isfinite(frame[["last_return", "best_return"]].to_numpy()).all()
    assert frame["last_return"].nunique() > 1, "seeds differ"
    assert {path.name for path in run.iterdir() if path.name != ".lock"} == {
        "cells", "cells.csv", "checkpoints", "datasets.json", "experiment.yaml", "machine.json", "ray.log",
        "references", "running.json", "table.csv", "table.md",
    }  # fmt: skip
    assert json.loads((run / "machine.json").read_text())["ray"]
    assert "did not complete" not in (run / "ray.log").read_text(), "Tune lost a process that had done its work"

    before = {path: path.stat().st_mtime_ns for path in run.glob("cells/*/*")}
    again = command("grid", "small.yaml")
    assert again.returncode == 0
    assert "Starting Ray" not in again.stdout, "nothing is left to run"
    assert before == {path: path.stat().st_mtime_ns for path in run.glob("cells/*/*")}

    resolved = command("grid", "runs/small/experiment.yaml", "--name", "again")
    assert resolved.returncode == 0, resolved.stdout + resolved.stderr
    assert_same_results(run, tmp_path / "runs" / "again")


def test_every_algorithm_in_one_grid(command, experiment, tmp_path):
    names = ["td3_bc", "cql", "iql", "bc", "bc_best"]
    small = {"hidden_sizes": [16, 16], "batch_size": 32}
    settings = {algorithm: small | ({"num_actions": 2} if algorithm == "cql" else {}) for algorithm in names}
    changes = {"algorithm: td3_bc": f"algorithm: {json.dumps(names)}", "seed: [0, 1, 2]": "seed: 0"}
    old = "settings:\n  td3_bc: {batch_size: 64, hidden_sizes: [32, 32]}"
    name = experiment("all.yaml", updates=100, **changes, **{old: f"settings: {json.dumps(settings)}"})
    done = command("grid", name)
    assert done.returncode == 0, done.stdout + done.stderr
    frame = cells(tmp_path / "runs" / "all").set_index("algorithm")
    assert sorted(frame.index) == sorted(names)
    assert set(frame["status"]) == {"finished"}
    assert np.isfinite(frame["last_return"]).all()
    assert sorted(frame.index[frame["q_policy"].isna()]) == ["bc", "bc_best"]
    markdown = (tmp_path / "runs" / "all" / "table.md").read_text()
    assert "| diffuse_mix | bc_best | - |" in markdown, "no critic, no Q"


@pytest.mark.slow
def test_grid_in_packs(command, experiment, tmp_path):
    """Two cells in one process and one in another; each has its own record, whoever evaluates their policies."""
    for name, cpu in (("packs", 1), ("beside", 2)):
        file = experiment(f"{name}.yaml", updates=100, cpu=cpu, **{"gpu: 0.25": "gpu: 0.25, pack: 2"})
        done = command("grid", file)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Up to 2 cells are trained as one program" in done.stdout
        assert ("waits while its policies are evaluated" in done.stdout) == (cpu == 1)
        logs = [path.read_text() for path in (tmp_path / "runs" / name / "cells").glob("*/log.txt")]
        assert any("evaluated while training goes on" in log for log in logs) == (cpu == 2)
    run = tmp_path / "runs" / "packs"
    assert_same_results(run, tmp_path / "runs" / "beside")
    frame = cells(run)
    assert set(frame["status"]) == {"finished"}
    assert frame["last_return"].nunique() > 1, "seeds differ"
    checkpoints = [json.loads(path.read_text())["path"] for path in sorted(run.glob("cells/*/checkpoint.json"))]
    assert len({str(Path(path).parent.parent) for path in checkpoints[:2]}) == 1, "saved together"


@pytest.mark.slow
def test_cells_go_on_in_packs_alone_and_in_packs_again(command, experiment, tmp_path):
    alone = command("grid", experiment("alone.yaml", updates=3000))
    assert alone.returncode == 0, alone.stdout + alone.stderr
    run = tmp_path / "runs" / "changing"
    first = "grid", experiment("changing.yaml", updates=3000, **{"gpu: 0.25": "gpu: 0.25, pack: 3"})
    for line, rows in ((first, 6), (("resume", run), 10)):
        process = command(*line, start=True)
        wait_for_rows(run, rows, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert ("as one program" in output) == (line == first)
        change_pack(run, 1 if line == first else 3)
    assert "unfinished" in set(cells(run)["status"])
    last = command("resume", run)
    assert last.returncode == 0, last.stdout + last.stderr
    assert "as one program" in last.stdout
    for path in run.glob("cells/*/metrics.csv"):  # equal up to rounding, which grows from update to update
        found = pd.read_csv(path)
        expected = pd.read_csv(tmp_path / "runs" / "alone" / path.relative_to(run))
        assert found["updates"].tolist() == expected["updates"].tolist()
        columns = ["train/q_policy", "train/q_dataset", "train/cloning_error"]
        pd.testing.assert_frame_equal(found[columns], expected[columns], rtol=0.05)
        early = found["updates"] <= 600
        pd.testing.assert_frame_equal(found.loc[early, columns], expected.loc[early, columns], rtol=1e-3)


@pytest.mark.slow  # test_command_line.py interrupts a training, test_ctrl_c_while_a_run_starts the start of a grid
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_grid_saves_and_its_command_continues(command, experiment, tmp_path, undisturbed, number):
    run = tmp_path / "runs" / "cut"
    process = command("grid", experiment("long.yaml", updates=4000), "--name", "cut", start=True)
    wait_for(lambda: trained_rows(run) >= 8, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    printed = output.split("Continue with:\n  python ")[1].splitlines()[0].split()
    frame = cells(run)
    assert "unfinished" in set(frame["status"])
    done = command(*printed[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(run, undisturbed)


@pytest.mark.parametrize(
    "line",
    [
        "Reading ",
        pytest.param("Starting Ray", marks=pytest.mark.slow),
        pytest.param("dashboard", marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_while_a_run_starts(command, experiment, tmp_path, line):
    """At whatever moment it comes, nothing is trained, and nothing is left running."""
    process = command("grid", experiment("long.yaml", updates=100_000), start=True)
    lines = iter(process.stdout.readline, "")
    shown = next(shown for shown in lines if line in shown)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, shown + output
    assert "Traceback" not in output
    assert trained_rows(tmp_path / "runs" / "long") <= 6
    assert not psutil.wait_procs(family, timeout=10)[1]


@pytest.mark.slow  # test_faults.py kills workers too
def test_killed_worker_is_retried_from_its_checkpoint(command, experiment, tmp_path, undisturbed):
    run = tmp_path / "runs" / "kill"
    process = command("grid", experiment("long.yaml", updates=4000), "--name", "kill", start=True)
    wait_for(lambda: trained_rows(run) >= 8, process)
    workers = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "ray::" in " ".join(child.cmdline())
    ]
    trainers = [
        child for child in workers if "td3_bc" in " ".join(child.cmdline()) or "OfflineRL" in " ".join(child.cmdline())
    ]
    assert trainers, [child.cmdline() for child in workers]
    trainers[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert_same_results(run, undisturbed)


@pytest.mark.slow  # test_search.py kills a driver and copies the folder too
def test_killed_driver_and_a_copied_folder_continue(command, experiment, tmp_path, undisturbed):
    run = tmp_path / "runs" / "dead"
    process = command("grid", experiment("long.yaml", updates=4000), "--name", "dead", start=True)
    wait_for(lambda: trained_rows(run) >= 8, process)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    psutil.wait_procs(family, timeout=30)
    for child in family:
        if child.is_running():
            child.kill()
    run.rename(tmp_path / "runs" / "moved")
    done = command("grid", "long.yaml", "--name", "moved")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(tmp_path / "runs" / "moved", undisturbed)


def test_request_that_no_machine_can_meet(command, experiment):
    done = command("grid", experiment("large.yaml", cpu=4096))
    assert done.returncode == 2
    assert "a cell asks for 4096 CPUs" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_one_bad_cell_does_not_end_the_run(command, experiment, tmp_path):
    """A learning rate without sense makes every loss infinite: named in the table, not retried."""
    bad = {"batch_size: 64": "batch_size: 64, learning_rate: 1.0e+30"}
    done = command("grid", experiment("bad.yaml", **bad))
    assert done.returncode == 1, done.stdout + done.stderr
    frame = cells(tmp_path / "runs" / "bad")
    assert set(frame["status"]) == {"failed"}
    assert frame["reason"].str.contains("a loss is not finite").all()
    assert done.stdout.count("failed: diffuse_mix-td3_bc-seed") == 3
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_existing_cluster(command, experiment, tmp_path, monkeypatch):
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    ray = Path(sys.executable).parent / "ray"
    # Ray writes a token file on `ray.init`; `ray start` wants it to be there.
    subprocess.run([ray, "get-auth-token", "--generate"], env=environment, capture_output=True, check=True)
    head = [ray, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--include-dashboard=false"]
    started = subprocess.Popen(
        head,
        env=environment | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        found = (re.search(r"--address='([\d.:]+)'", line) for line in started.stdout)
        address = next(match.group(1) for match in found if match)
        done = command("grid", experiment("small.yaml"), "--address", address)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"Joining Ray at {address}" in done.stdout
        assert set(cells(tmp_path / "runs" / "small")["status"]) == {"finished"}
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        refused = command("grid", experiment("other.yaml"), "--address", address)
        assert refused.returncode == 2, refused.stdout + refused.stderr
        assert f"--address {address}: cannot join this cluster" in refused.stderr
        assert "Traceback" not in refused.stdout + refused.stderr
    finally:
        # Not `ray stop`: that would end every other Ray of this machine, a user's grid among them.
        for process in (*psutil.Process(started.pid).children(recursive=True), started):
            process.kill()
        started.wait()


def test_no_cluster_at_the_address(command, experiment):
    done = command("grid", experiment("small.yaml"), "--address", "127.0.0.1:1")
    assert done.returncode == 2
    assert "cannot join this cluster" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
