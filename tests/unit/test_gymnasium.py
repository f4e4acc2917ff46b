"""`gymnasium.make` and `make_vec`: names, spaces, Gymnasium's own checker, and one user alone or among others."""

import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from inspect import getdoc

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

import gems_ray
from gems_ray.envs.registration import NAMES, environment_id
from gems_ray.errors import ConfigError, SimulatorError, WorldError
from gems_ray.simulator import ENVIRONMENTS
from gems_ray.world.bundle import shipped_worlds
from tests.conftest import make_world

VARIANTS = ("", "Slates")
STEPS = 6  # of an episode here, where autoreset is what matters
IDS = [environment_id(name, variant) for name in sorted(ENVIRONMENTS) for variant in VARIANTS]


@pytest.fixture(scope="module")
def worlds():
    return {name: make_world(name) for name in ENVIRONMENTS}


@pytest.fixture(scope="module")
def short_worlds(worlds):
    return {
        name: replace(world, environment=replace(world.environment, episode_length=STEPS))
        for name, world in worlds.items()
    }


@pytest.fixture
def made_for(worlds):
    """Arguments of `make` for an id, with a world of random weights."""
    return lambda name: {"world": worlds[gymnasium.spec(name).kwargs["environment"]]}


def test_every_environment_has_a_name():
    assert set(NAMES) == set(ENVIRONMENTS)
    assert environment_id("diffuse_topdown") == "gems_ray/DiffuseTopDown-v0"
    assert {spec.id for spec in gymnasium.registry.values() if spec.namespace == "gems_ray"} == set(IDS)


@pytest.mark.parametrize(
    "code",
    [
        "import gems_ray, gymnasium",
        "import gymnasium, gems_ray",
        "import gymnasium; gymnasium.make('gems_ray:CartPole-v1')",
        "import gems_ray, importlib.util; importlib.util.find_spec('gymnasium'); import gymnasium",
    ],
)
def test_importing_gems_ray_is_enough(code):
    code += "; assert 'gems_ray/FocusedDivPen-v0' in gymnasium.registry"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", IDS)
def test_gymnasium_finds_nothing_to_say(name, made_for):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(name, **made_for(name)).unwrapped)


@pytest.mark.parametrize("name", IDS[:2])
def test_docstrings_name_the_spaces(name, made_for):
    env = gymnasium.make(name, **made_for(name)).unwrapped
    text = getdoc(type(env))
    assert "| number | meaning | lowest | highest |" in text
    if name.endswith("Slates-v0"):
        assert f"MultiDiscrete([{env.action_space.nvec[0]}] * {len(env.action_space.nvec)})" in text
        assert set(env.observation_space) == set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    else:
        assert re.findall(r"`(Box\(.*?\))`", text) == [repr(env.action_space), repr(env.observation_space)]


def assert_alike(first, second):
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_alike(first[key], second[key])
    elif first.dtype == object:
        for one, other in zip(first, second, strict=True):
            assert_alike(one, other)
    else:  # a matrix product over three users rounds otherwise than three over one
        np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("name", IDS)
def test_users_are_the_same_alone_and_together(name, mode, short_worlds):
    """Observations, rewards, ends and all of `info` agree with Gymnasium's own batch of single environments."""
    world = short_worlds[gymnasium.spec(name).kwargs["environment"]]
    together = gymnasium.make_vec(name, 3, world=world, autoreset_mode=mode.value)
    kinds = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": mode}}
    alone = gymnasium.make_vec(name, 3, world=world, **kinds)
    assert together.metadata["autoreset_mode"] is alone.metadata["autoreset_mode"] is mode
    for space in ("observation_space", "action_space", "single_observation_space", "single_action_space"):
        assert getattr(together, space) == getattr(alone, space)
    observation, info = together.reset(seed=7)
    expected, known = alone.reset(seed=7)
    assert_alike(observation, expected)
    assert_alike(info, {key: known[key] for key in info})
    together.action_space.seed(0)
    ends = []
    for step in range(1, 3 * STEPS):
        actions = together.action_space.sample()
        *observed, info = together.step(actions)
        *expected, known = alone.step(actions)
        for one, other in zip(observed, expected, strict=True):
            assert_alike(one, other)
        np.testing.assert_array_equal(info["slate"], known["slate"])
        assert ("final_obs" in info) == ("final_obs" in known)
        if "final_obs" in info:
            assert_alike(info["final_obs"], known["final_obs"])
            assert_alike(info["final_info"]["clicks"], known["final_info"]["clicks"])
        if observed[2].all():
            ends.append(step)
        assert not observed[3].any()
    assert ends == ([STEPS, 2 * STEPS + 1] if mode is AutoresetMode.NEXT_STEP else [STEPS, 2 * STEPS])


def test_scalar_steps_are_rows_of_the_vector(made_for):
    name = "gems_ray/DiffuseMix-v0"
    vector, scalar = gymnasium.make_vec(name, 2, **made_for(name)), gymnasium.make(name, **made_for(name))
    observations, _ = vector.reset(seed=[5, 9])
    observation, _ = scalar.reset(seed=9)
    np.testing.assert_allclose(observation, observations[1], atol=1e-6)
    for _ in range(100):
        actions = vector.action_space.sample()
        observations, rewards, terminated, _, infos = vector.step(actions)
        observation, reward, over, cut, info = scalar.step(actions[1])
        np.testing.assert_allclose(observation, observations[1], atol=1e-6)
        np.testing.assert_array_equal(info["slate"], infos["slate"][1])
        assert (reward, over, cut) == (rewards[1], terminated[1], False)
    assert over


def test_actions_are_normalised(made_for, worlds):
    name = "gems_ray/DiffuseMix-v0"
    world = worlds["diffuse_mix"]
    env = gymnasium.make(name, **made_for(name))
    env.reset(seed=0)
    action = env.action_space.sample()
    import torch

    latent = torch.from_numpy(world.bounds.to_latent(action))[None]
    np.testing.assert_array_equal(env.step(action)[-1]["slate"], world.ranker.decode(latent)[0])


def test_without_a_seed_episodes_differ_and_go_on(made_for):
    name = "gems_ray/DiffuseMixSlates-v0"
    users = [gymnasium.make(name, **made_for(name)).reset()[1]["user"] for _ in range(2)]
    assert (users[0] != users[1]).any()
    vector = gymnasium.make_vec(name, 2, **made_for(name))
    assert (vector.reset(seed=1)[1]["user"] != vector.reset()[1]["user"]).any()
    again = vector.reset(seed=[1, None])[1]["user"]
    np.testing.assert_array_equal(again[0], vector.reset(seed=1)[1]["user"][0])


def test_wrappers_of_gymnasium_work(made_for):
    env = gymnasium.make_vec("gems_ray/DiffuseMix-v0", 2, **made_for("gems_ray/DiffuseMix-v0"))
    env = DictInfoToList(RecordEpisodeStatistics(env))
    env.reset(seed=0)
    total = np.zeros(2)
    for _ in range(100):
        _, reward, _, _, infos = env.step(env.action_space.sample())
        total += reward
    assert [info["episode"]["r"] for info in infos] == total.tolist()
    assert infos[0]["slate"].shape == (10,)


def test_a_disabled_autoreset_leaves_the_reset_to_the_caller(made_for):
    env = gymnasium.make_vec("gems_ray/DiffuseMixSlates-v0", 2, autoreset_mode="Disabled")
    env.reset(seed=0)
    for _ in range(100):
        env.step(env.action_space.sample())
    with pytest.raises(SimulatorError, match="reset"):
        env.step(env.action_space.sample())
    with pytest.raises(SimulatorError, match="all episodes begin together"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(options={"reset_mask": np.array([True, True])})


def test_slates_are_shown_to_the_users_of_the_shipped_worlds():
    for name in shipped_worlds():
        env = gymnasium.make_vec(environment_id(name, "Slates"), 1)
        np.testing.assert_array_equal(env.simulator.items, gems_ray.load_world(name).items)


def test_mistakes_are_one_line(made_for, worlds, world_folder):
    name = "gems_ray/FocusedMix-v0"
    with pytest.raises(WorldError, match=r"world train --environment focused_mix .*FocusedMix-v0\", world=") as error:
        gymnasium.make(name)
    assert "\n" not in str(error.value)
    with pytest.raises(WorldError, match="simulates diffuse_mix, expected one of focused_mix"):
        gymnasium.make(name, world=worlds["diffuse_mix"])
    with pytest.raises(WorldError, match="simulates diffuse_mix, expected one of focused_mix"):
        gymnasium.make(name, world=str(world_folder))
    with pytest.raises(ConfigError, match="expected one of NextStep, SameStep, Disabled, found `Never`"):
        gymnasium.make_vec(name, 2, **made_for(name), autoreset_mode="Never")
    env = gymnasium.make_vec("gems_ray/DiffuseMix-v0", 2, world=world_folder)
    with pytest.raises(SimulatorError, match="one for each of 2 users, found 3"):
        env.reset(seed=[1, 2, 3])
    env.reset(seed=1)
    with pytest.raises(SimulatorError, match=r"shape \(2, 32\), found shape \(32,\)"):
        env.step(np.zeros(32))
    with pytest.raises(SimulatorError, match="with NaN"):
        env.step(np.full((2, 32), np.nan))
    slates = gymnasium.make("gems_ray/DiffuseMixSlates-v0", disable_env_checker=True)
    slates.reset(seed=1)
    with pytest.raises(SimulatorError, match="0 or larger, found -1"):
        slates.step(np.full(10, -1))


def test_environments_in_processes_that_were_forked():
    """Without OMP_NUM_THREADS torch has threads of its own, which a forked process has not."""
    code = "import gymnasium, gems_ray; "
    code += "gymnasium.make_vec('gems_ray/DiffuseMix-v0', num_envs=2, vectorization_mode='async').reset(seed=0)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", code], env=environment, timeout=120, check=True)


@pytest.mark.parametrize("vector", [False, True])
def test_what_is_returned_belongs_to_the_caller(vector, worlds):
    def episode(change):
        name, world = "gems_ray/DiffuseMix-v0", worlds["diffuse_mix"]
        env = gymnasium.make_vec(name, num_envs=2, world=world) if vector else gymnasium.make(name, world=world)
        env.action_space.seed(0)
        seen = []
        observation, _ = env.reset(seed=3)
        for _ in range(4):
            seen.append(observation.copy())
            observation += change
            observation, *_ = env.step(env.action_space.sample())
        return np.stack(seen)

    np.testing.assert_array_equal(episode(0.0), episode(0.3))


def test_a_slate_that_was_played_stays_in_info(worlds):
    env = gymnasium.make("gems_ray/DiffuseMixSlates-v0", world=worlds["diffuse_mix"])
    env.reset(seed=0)
    action = np.arange(10)
    *_, info = env.step(action)
    action += 1
    np.testing.assert_array_equal(info["slate"], np.arange(10))


def test_opening_a_world_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    gymnasium.make("gems_ray/DiffuseMix-v0")
    assert torch.rand(1) == expected


@pytest.mark.filterwarnings("ignore:.*render_mode='human'")  # Gymnasium's own, before the error
@pytest.mark.parametrize("make", [gymnasium.make, gymnasium.make_vec])
@pytest.mark.parametrize("name", IDS[:2])
def test_nothing_is_rendered(make, name, made_for):
    make(name, render_mode=None, **made_for(name)).close()
    with pytest.raises(ConfigError, match="render_mode: expected None, found `human`"):
        make(name, render_mode="human", **made_for(name))


@pytest.mark.parametrize("seed", [-1, 1.5, [0, -1]])
def test_impossible_seeds(seed, worlds):
    env = gymnasium.make_vec("gems_ray/DiffuseMix-v0", num_envs=2, world=worlds["diffuse_mix"])
    with pytest.raises(SimulatorError, match="seed: expected"):
        env.reset(seed=seed)


def test_users_that_are_no_numbers(worlds):
    env = gymnasium.make("gems_ray/DiffuseMix-v0", world=worlds["diffuse_mix"])
    with pytest.raises(SimulatorError, match="user_vectors: expected finite numbers"):
        env.reset(options={"user_vectors": np.full((1, 20), np.nan)})


@pytest.mark.parametrize("action", [None, ["a"] * 10, np.zeros(10), np.zeros(9, dtype=int)])
def test_actions_that_are_no_slates(action, worlds):
    env = gymnasium.make("gems_ray/DiffuseMixSlates-v0", world=worlds["diffuse_mix"], disable_env_checker=True)
    env.reset(seed=0)
    with pytest.raises(SimulatorError, match=r"action: expected .*\(10,\)"):
        env.unwrapped.step(action)
