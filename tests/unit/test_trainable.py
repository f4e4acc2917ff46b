"""The trainable of a cell without Ray around it: what the machine does wrong, and what the cell does wrong."""

import resource
from contextlib import contextmanager

import pytest
import ray
from ray.exceptions import ObjectLostError

from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.tune import trainable
from gems_ray.tune.trainable import CellTrainable
from tests.unit.conftest import MACHINE


@pytest.fixture
def make(tmp_path, dataset, world_folder, monkeypatch):
    """Opens a tiny cell as a worker of Ray does; `ray.get` hands on what it is given, or raises it."""

    def get(reference):
        if isinstance(reference, Exception):
            raise reference
        return reference

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(trainable, "SLICE_SECONDS", 0.02)
    made = []

    def make_trainable(data=None):
        experiment = check_experiment(
            {
                "environment": "diffuse_mix",
                "settings": {"td3_bc": {"hidden_sizes": [16, 16], "batch_size": 32}},
                "worlds": {"diffuse_mix": str(world_folder)},
                "training": {"max_timesteps": 1000, "evaluation_interval": 500},
                "evaluation": {"validation_users": 4, "test_users": 5},
            }
        )
        run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
        (cell,) = experiment.cells()
        run.open_cells([cell])
        one = CellTrainable.__new__(CellTrainable)
        folder = str(run.cell(cell.name).path)
        one.config = {
            "cell": {"folder": folder, "environment": "diffuse_mix", "world": str(world_folder), "cpu": 1, "gpu": 0}
        }
        one.setup(one.config, {"diffuse_mix": data or dataset})
        made.append(one)
        return one, run.cell(cell.name)

    yield make_trainable
    for one in made:
        one.cleanup()


@contextmanager
def full_disk(size):
    """No file can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_cell_unfinished(make):
    """It goes on from the last checkpoint, in the same process or in another one."""
    one, folder = make()
    one.step()
    assert len(folder.metrics()) == 1
    with full_disk(20_000):  # room for the metrics, not for a checkpoint
        for _ in range(1000):
            report = one.step()
            if report["done"]:
                break
        assert report["done"]
        assert "File too large" in report["set_back"]
        assert "set back: " in folder.log.read_text()
        assert folder.status == "unfinished"
        assert not folder.is_locked(), "another process may try"
    assert report["evaluated_updates"] == 0, "what was not written is no progress"
    one.reset_config(one.config)
    assert not one.step()["done"]
    one.cleanup()
    again, folder = make()
    while not (report := again.step())["done"]:
        pass
    assert report["set_back"] == ""
    assert folder.status == "finished"


def test_a_lost_dataset_is_no_mistake_of_the_cell(make):
    one, folder = make(ObjectLostError("abc", None, "somewhere"))
    report = one.step()
    assert report["done"]
    assert report["set_back"]
    assert "\n" not in report["set_back"]
    assert folder.status == "pending"
