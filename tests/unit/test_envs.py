"""The Gymnasium environments: the library's own checker, one seed one episode, batch equals scalar."""

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from gems_ray.envs.rollout import rollout, rollout_slates
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.envs.users_env import SlateEnv
from gems_ray.policies.slates import SlatePolicy
from gems_ray.simulator import ENVIRONMENTS, TopicRec
from tests.conftest import make_world
from tests.policies import Constant


@pytest.fixture(scope="module", params=sorted(ENVIRONMENTS))
def any_world(request):
    return make_world(request.param)


def vector_env(world, users, seed=0):
    simulator = TopicRec(world.environment, world.items, users=users, seed=seed)
    return SlateVectorEnv(simulator, world.ranker, world.belief, world.bounds)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gymnasium_accepts_it(any_world):
    check_env(SlateEnv(vector_env(any_world, 1)), skip_render_check=True)


def play(env, seed, steps=100):
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=seed)
    seen, rewards = [observation], []
    for _ in range(steps):
        latents = rng.uniform(-3, 3, (env.num_envs, 32)).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(latents)
        seen.append(observation)
        rewards.append(reward)
    assert terminated.all()
    assert not truncated.any()
    return np.stack(seen), np.stack(rewards)


def test_one_seed_one_episode(any_world):
    first, second = (play(vector_env(any_world, 3), seed=5) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert (play(vector_env(any_world, 3), seed=6)[1] != first[1]).any()


def test_scalar_equals_a_batch_of_one(any_world):
    batch, scalar = vector_env(any_world, 1), SlateEnv(vector_env(any_world, 1))
    expected, _ = batch.reset(seed=3)
    observation, _ = scalar.reset(seed=3)
    np.testing.assert_array_equal(observation, expected[0])
    for step in range(100):
        latent = np.full(32, np.sin(step), dtype=np.float32)
        expected, reward, done, _, info = batch.step(latent[None])
        observation, value, terminated, truncated, shown = scalar.step(latent)
        np.testing.assert_array_equal(observation, expected[0])
        np.testing.assert_array_equal(shown["slate"], info["slate"][0])
        assert (value, terminated, truncated) == (reward[0], done[0], False)


def test_given_users(world):
    users = np.eye(20, dtype=np.float32)[:4]
    env = vector_env(world, 4)
    env.reset(options={"user_vectors": users})
    np.testing.assert_array_equal(env.simulator.info["user"], users)


def test_rollout_records_what_happened(world):
    env = vector_env(world, 5)
    actions = np.random.default_rng(0).uniform(-3, 3, (5, 32)).astype(np.float32)
    episodes = rollout(env, Constant(actions))
    assert episodes.observations.shape == (5, 101, 20)
    np.testing.assert_array_equal(episodes.rewards, episodes.clicks[:, 1:].sum(axis=2))
    np.testing.assert_array_equal(episodes.slates[:, 1], world.ranker.decode(torch.from_numpy(actions)))
    np.testing.assert_array_equal(episodes.slates[:, 0], np.tile(env.simulator.first_slate, (5, 1)))


def test_rollout_of_slates(world):
    simulator = TopicRec(world.environment, world.items, users=5, seed=0)
    episodes = rollout_slates(simulator, SlatePolicy("oracle", world.environment))
    assert episodes.slates.min() >= 0, "the recorded slates are those that were shown"
    np.testing.assert_array_equal(episodes.rewards, episodes.clicks[:, 1:].sum(axis=2))
