"""Datasets go to Minari and come back unchanged, with the real library."""

import json
import shutil
from dataclasses import replace

import gymnasium
import h5py
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
    [
        lambda dataset: dataset,
        lambda dataset: dataset.for_training(),
        lambda dataset: replace(dataset, clicks=None),
        lambda dataset: replace(dataset, slates=None),
        cut_off,
    ],
    ids=["collected", "without both", "without clicks", "without slates", "cut off"],
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


@pytest.mark.parametrize(
    "name",
    [
        "../outside-v0",
        "a/x-v0",
        "x",
        "/x-v0",
        "gems/",
        f"x-v{'9' * 5_000}",
        f"{'x' * 300}-v0",
        f"{'n' * 300}/x-v0",
        "a\n",
    ],
    ids=lambda name: name[:8],
)
def test_names_that_minari_cannot_have(dataset, root, name):
    with pytest.raises(ConfigError, match="is no name of Minari") as error:
        export_minari(dataset, name)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("Expected one such as gems_ray/diffuse_mix-expert-v0.")
    assert len(str(error.value)) < 500
    assert not list(root.iterdir())


def test_mistakes_are_one_line(dataset, root):
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


def facts(**changes):
    """Damage: other facts in Minari's own metadata; a change to ... leaves one out."""

    def change(folder):
        path = folder / "data" / "metadata.json"
        changed = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({name: value for name, value in changed.items() if value is not ...}))

    return change


def written(text):
    return lambda folder: (folder / "data" / "metadata.json").write_bytes(text)


def arrays(change):
    """Damage: something else in the arrays of an episode."""

    def damage(folder):
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            change(file)

    return damage


def replaced(name, values):
    def change(file):
        del file[name]
        if values is not None:
            file[name] = values

    return arrays(change)


def cut(folder):
    path = folder / "data" / "main_data.hdf5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scratched(folder):
    path = folder / "data" / "main_data.hdf5"
    content = bytearray(path.read_bytes())
    content[2_000:40_000:7] = bytes(len(content[2_000:40_000:7]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    {
        "no JSON": written(b"{"),
        "binary": written(b"\x00\xff"),
        "a list": written(b"[]"),
        "deep": written(b"[" * 100_000),
        "without its facts": lambda folder: (folder / "data" / "metadata.json").unlink(),
        "without its data": lambda folder: (folder / "data" / "main_data.hdf5").unlink(),
        "an empty folder": lambda folder: shutil.rmtree(folder / "data"),
        "a space that is not known": facts(observation_space=json.dumps({"type": "Graph"})),
        "a space that is none": facts(action_space="7"),
        "a box of another kind": facts(action_space=json.dumps({"type": "Box", "dtype": "x", "shape": [1]})),
        "two lines of error": facts(action_space=json.dumps({"type": "Box\n\x1b[31m"})),
        "more episodes than there is memory": facts(total_episodes=10**15),
        "episodes that are no number": facts(total_episodes="many"),
        "no episode": facts(total_episodes=0),
        "more episodes than there are": facts(total_episodes=13),
        "a later version": facts(minari_version="99.0.0"),
        "no version": facts(minari_version=...),
        "an unknown format": facts(data_format="zarr"),
        "another format": facts(data_format="arrow"),
        "an environment that is none": facts(env_spec="{}"),
        "our metadata as a number": facts(gems_ray=7),
        "our metadata as lists": facts(gems_ray=[[1], [1, 2]]),
        "our metadata of something else": facts(gems_ray="{}"),
        "an episode that is missing": replaced("episode_3", None),
        "rewards that are missing": replaced("episode_3/rewards", None),
        "an episode that is an array": replaced("episode_3", np.zeros(3)),
        "observations of another size": replaced("episode_3/observations", np.zeros((101, 3))),
        "texts for observations": replaced("episode_3/observations", ["a", "b"]),
        "a single number": replaced("episode_3/actions", 3.0),
        "cut off": cut,
        "scratched": scratched,
    }.items(),
    ids=lambda damage: damage[0],
)
def test_a_damaged_dataset_ends_in_one_line(dataset, root, command_line, damage):
    export_minari(dataset, NAME)
    damage[1](root / NAME)
    code, _, error = command_line("dataset", "import", "--minari", NAME, "--output", root / "back.npz")
    assert code == 2, error
    assert error.count("\n") == 1 and error.startswith(f"error: {NAME}: "), error
    assert "\x1b" not in error
    assert len(error) < 1_000
    assert not (root / "back.npz").exists()


def test_an_environment_that_a_dataset_names_is_not_run(dataset, root, command_line):
    """Minari makes it to learn its spaces, by an import path that the author of the file chose."""
    export_minari(dataset, NAME)
    spec = gymnasium.envs.registration.EnvSpec("Foreign-v0", entry_point="os:mkdir", kwargs={"path": str(root / "run")})
    facts(env_spec=spec.to_json(), action_space=...)(root / NAME)
    code, _, error = command_line("dataset", "import", "--minari", NAME, "--output", root / "back.npz")
    assert not (root / "run").exists()
    assert code == 2
    assert error.count("\n") == 1 and "action_space" in error


def test_a_foreign_folder_among_the_datasets_does_no_harm(dataset, root, command_line):
    (root / "notes" / "data").mkdir(parents=True)
    (root / "broken-v0" / "data").mkdir(parents=True)
    code, _, error = command_line("dataset", "import", "--minari", NAME, "--output", root / "back.npz")
    assert code == 2
    assert error.count("\n") == 1 and "no such dataset" in error
