"""Datasets go to Minari and come back unchanged, with the real library."""

from dataclasses import replace

import gymnasium
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from gems_ray.data.schema import OPTIONAL, REQUIRED, Dataset
from gems_ray.envs.minari import export_minari, import_minari
from gems_ray.errors import ConfigError, DatasetError
from gems_ray.world.bundle import find_world
from gems_ray.worldmaking.collect import collect_dataset

NAME = "gems_ray/diffuse_mix-mixed-v0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return tmp_path


def cut_off(dataset):
    """The same with a time limit at the end of the second episode, and an unfinished last one."""
    timeouts = np.zeros(len(dataset), dtype=bool)
    timeouts[199] = True
    changed = replace(dataset, terminals=dataset.terminals & ~timeouts, timeouts=timeouts, metadata=None)
    arrays = {name: array[:-30] for name in (*REQUIRED, *OPTIONAL) if (array := getattr(changed, name)) is not None}
    return Dataset(**arrays)


@pytest.mark.parametrize(
    "change",
    [lambda dataset: dataset, lambda dataset: dataset.for_training(), cut_off],
    ids=["collected", "without slates", "cut off"],
)
def test_nothing_is_lost(change, dataset):
    original = change(dataset)
    export_minari(original, NAME)
    back = import_minari(NAME)
    assert back.metadata == original.metadata
    for name in (*REQUIRED, *OPTIONAL):
        before, after = getattr(original, name), getattr(back, name)
        assert (before is None) == (after is None), name
        if before is not None:
            assert before.dtype == after.dtype
            np.testing.assert_array_equal(before, after)
    assert back.fingerprint == original.fingerprint


def test_what_minari_sees(dataset):
    export_minari(dataset, NAME)
    found = minari.load_dataset(NAME)
    assert (found.total_episodes, found.total_steps) == (12, 1200)
    episode = found[3]
    np.testing.assert_array_equal(episode.observations[1:], dataset.next_observations[300:400])
    assert episode.observations[0] in found.observation_space
    assert episode.terminations.tolist() == [False] * 99 + [True]
    np.testing.assert_array_equal(episode.infos["clicks"][1:].sum(axis=1), episode.rewards)
    with pytest.raises(ValueError, match="env_spec is None"):
        found.recover_environment()  # the world is of no use to anybody else


def test_the_environment_of_a_shipped_world_is_recovered():
    """Replaying the logged actions in it shows the logged slates."""
    world = find_world("diffuse_divpen")
    dataset = collect_dataset(world, "random", 2, seed=0)
    export_minari(dataset, NAME)
    found = minari.load_dataset(NAME)
    env = found.recover_environment()
    assert env.spec.id == "gems_ray/DiffuseDivPen-v0"
    assert env.action_space == found.action_space
    assert env.observation_space == found.observation_space
    env.reset(seed=0)
    for action, slate in zip(dataset.actions[:20], dataset.slates[:20], strict=True):
        assert action in found.action_space
        np.testing.assert_array_equal(env.step(action)[-1]["slate"], slate)
    scores = minari.get_normalized_score(found, np.array([31.2, world.facts["test"]["expert"]["return_mean"]]))
    np.testing.assert_allclose(scores, [0, 1], atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")  # of an author who tells nothing
def test_a_dataset_from_elsewhere(dataset):
    """Without our metadata, in other dtypes, and with an episode that just breaks off."""
    observations = np.tile(dataset.observations[:1], (4, 1)).astype(np.float64)
    step = {"actions": dataset.actions[:3], "rewards": [1.0, 0.0, 2.0], "truncations": [False] * 3}
    episodes = [
        EpisodeBuffer(observations=observations, terminations=[False] * 3, **step),
        EpisodeBuffer(observations=observations, terminations=[False, False, True], **step),
    ]
    space = gymnasium.spaces.Box(-9, 9, (20,), np.float64), gymnasium.spaces.Box(-9, 9, (32,))
    minari.create_dataset_from_buffers(NAME, episodes, observation_space=space[0], action_space=space[1])
    found = import_minari(NAME)
    assert found.metadata is None
    assert found.terminals.tolist() == [False] * 5 + [True]
    assert found.timeouts.tolist() == [False, False, True, False, False, False]
    assert found.observations.dtype == np.float32


def test_mistakes_are_one_line(dataset, root):
    with pytest.raises(ConfigError, match=r"Expected one such as gems_ray/diffuse_mix-expert-v0"):
        export_minari(dataset, "../outside-v0")
    with pytest.raises(DatasetError, match="no such dataset in .*There are: none"):
        import_minari(NAME)
    export_minari(dataset, NAME)
    with pytest.raises(DatasetError, match="of this name"):
        export_minari(dataset, NAME)
    with pytest.raises(DatasetError, match="row 0: its next observation"):
        export_minari(replace(dataset, next_observations=dataset.observations), "other-v0")
    assert not (root / "other-v0").exists()
    (root / NAME / "data" / "main_data.hdf5").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="cannot be read") as error:
        import_minari(NAME)
    assert "\n" not in str(error.value)
