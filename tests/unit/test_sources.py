"""Datasets and worlds of an experiment: nothing is trained or judged in others than were asked for."""

import dataclasses

import pytest

from gems_ray.errors import DatasetError, WorldError
from gems_ray.execution.listener import RunListener
from gems_ray.execution.sources import check_target, open_source, write_references
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.run_folder import RunFolder
from tests.conftest import make_world

MIXED = {"quality": "mixed", "episodes": 12}


def source(tmp_path, world_folder, **dataset):
    experiment = check_experiment(
        {
            "environment": "diffuse_mix",
            "worlds": {"diffuse_mix": str(world_folder)},
            "dataset": {"folder": str(tmp_path), **MIXED, **dataset},
        }
    )
    return open_source(experiment, "diffuse_mix", RunListener())


@pytest.mark.parametrize("share", [1 / 3, 0.35])
def test_the_share_of_expert_episodes_is_compared_in_whole_episodes(tmp_path, world_folder, dataset, share):
    dataset.save(tmp_path / "diffuse_mix_mixed.npz")
    assert source(tmp_path, world_folder, expert_share=share).dataset.fingerprint == dataset.fingerprint


@pytest.mark.parametrize(("name", "value"), [("expert_share", 0.75), ("seed", 1), ("episodes", 13)])
def test_a_file_with_other_settings_is_refused(tmp_path, world_folder, dataset, name, value):
    dataset.save(tmp_path / "diffuse_mix_mixed.npz")
    with pytest.raises(DatasetError, match=f"diffuse_mix_mixed.npz: collected with {name} .*asks for {value}"):
        source(tmp_path, world_folder, **{name: value})


def test_a_world_of_another_environment_is_refused(tmp_path):
    make_world("diffuse_topdown").save(tmp_path / "topdown")
    with pytest.raises(WorldError, match=r"worlds\.diffuse_mix: the world `.*topdown` simulates diffuse_topdown"):
        source(tmp_path, tmp_path / "topdown")


def test_a_world_for_a_file_that_names_none_is_refused(tmp_path, world_folder, dataset):
    dataclasses.replace(dataset, metadata=None).save(tmp_path / "foreign.npz")
    with pytest.raises(DatasetError, match=r"no metadata.*Leave out worlds\.diffuse_mix"):
        source(tmp_path, world_folder, file=str(tmp_path / "foreign.npz"))


def test_a_missing_file_is_named_in_what_to_do(tmp_path, world_folder):
    with pytest.raises(DatasetError, match=r"none\.npz: no such dataset.*--output .*none\.npz$"):
        source(tmp_path, world_folder, file=str(tmp_path / "none.npz"))


def test_a_dataset_that_cannot_be_written_is_refused_before_it_is_collected(tmp_path):
    (tmp_path / "file").touch()
    for path, message in ((tmp_path, "found the folder"), (tmp_path / "file" / "a" / "b.npz", "file` is a file")):
        with pytest.raises(DatasetError, match=f"--output: .*{message}"):
            check_target(path, "--output")
    check_target(tmp_path / "new" / "b.npz", "--output")


def test_references_are_of_the_users_that_are_asked_for(tmp_path, world):
    run = RunFolder(tmp_path)
    for users in (3, 4):
        experiment = check_experiment({"environment": "diffuse_mix", "evaluation": {"test_users": users}})
        write_references(run, experiment, "diffuse_mix", world)
        assert {row.users for row in run.references("diffuse_mix").by_policy.values()} == {users}
