"""Checkpoints in a storage of the S3 protocol, on a real server that the test starts."""

import json
import re
import shutil
import signal

import pandas as pd
import pytest

import gems_ray
from tests.integration.conftest import end_family, wait_for_rows

EXPERIMENT = {
    "environment": ["diffuse_mix"],
    "algorithm": "td3_bc",
    "seed": [0, 1, 2],
    "settings": {"td3_bc": {"hidden_sizes": [32, 32], "batch_size": 64}},
    "dataset": {"quality": "mixed", "episodes": 20},
    "training": {"max_timesteps": 4000, "evaluation_interval": 500},
    "evaluation": {"validation_users": 10, "test_users": 20},
    "resources": {"cpu": 1},
}
COLUMNS = ["cell", "status", "updates", "last_return", "best_return", "best_updates", "validation_best", "q_policy"]


@pytest.fixture
def grid(tmp_path, world_folder):
    """The name of an experiment file."""
    (tmp_path / "grid.yaml").write_text(json.dumps({**EXPERIMENT, "worlds": {"diffuse_mix": str(world_folder)}}))
    return "grid.yaml"


def uri(s3, folder):
    return f"s3://bucket/{folder}?endpoint_override={s3}&scheme=http"


@pytest.mark.slow
def test_killed_and_resumed_from_a_copy_of_the_records(command, grid, tmp_path, s3):
    """The records are copied to another place, the checkpoints stay where they are: the numbers are the same."""
    whole = command("grid", grid, "--name", "whole")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    run = tmp_path / "runs" / "grid"
    process = command("grid", grid, "--storage", uri(s3, "runs"), start=True)
    wait_for_rows(run, 10, process)
    process.send_signal(signal.SIGKILL)
    end_family(process)
    assert not list(run.rglob("*.safetensors")), "checkpoints are in the storage alone"
    copy = tmp_path / "elsewhere" / "grid"
    shutil.copytree(run, copy)
    shutil.rmtree(run)
    done = command("resume", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = "".join(path.read_text() for path in copy.glob("cells/*/log.txt"))
    assert re.search(r"goes on after [1-9]\d* updates", logs)
    assert "begins anew" not in logs
    frames = [pd.read_csv(folder / "cells.csv")[COLUMNS] for folder in (copy, tmp_path / "runs" / "whole")]
    pd.testing.assert_frame_equal(*frames)
    policy = gems_ray.open_run(copy).policy("seed0")
    world = gems_ray.load_world(world_of(grid, tmp_path))
    assert gems_ray.evaluate(policy, world, users=20).return_mean == pytest.approx(frames[0]["best_return"][0])


def world_of(grid, folder):
    return json.loads((folder / grid).read_text())["worlds"]["diffuse_mix"]


def test_a_run_stays_with_its_storage(command, grid, tmp_path, s3):
    short = {**json.loads((tmp_path / grid).read_text()), "seed": 0, "training": {"max_timesteps": 10}}
    (tmp_path / "short.yaml").write_text(json.dumps(short))
    begun = command("grid", "short.yaml", "--storage", uri(s3, "a"))
    assert begun.returncode == 0, begun.stdout + begun.stderr
    run = tmp_path / "runs" / "short"
    assert not list(run.rglob("*.safetensors")), "checkpoints are in the storage alone"
    assert gems_ray.open_run(run).policy("seed0", "last").encoder is None, "and are found there"
    again = command("grid", "short.yaml", "--storage", uri(s3, "b"))
    assert again.returncode == 2
    assert "began with its checkpoints in s3://bucket/a/short?" in again.stderr


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://key:secret@bucket/runs", "expected a URI without keys"),
        ("s3://bucket/runs?endpoint_override=127.0.0.1:1&scheme=http", "cannot be opened"),
        ("nothing://bucket/runs", "cannot be opened"),
    ],
)
def test_storages_that_cannot_be_used(command, grid, tmp_path, storage, message):
    done = command("grid", grid, "--storage", storage)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists()
