"""Fitted Q evaluation on processes whose answer is known."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.normalizer import Normalizer
from gems_ray.data.trajectories import returns_to_go, trajectory_ends
from gems_ray.errors import DatasetError
from gems_ray.evaluation.offline import OfflineEvaluator, hold_out
from tests.policies import Constant

STEPS, DISCOUNT = 5, 0.9


def log(episodes, seed=0):
    """Rewards depend on the first action alone: 1 + a_0; actions are uniform, states are noise."""
    rng = np.random.default_rng(seed)
    rows = episodes * STEPS
    actions = rng.uniform(-1, 1, size=(rows, 2)).astype(np.float32)
    arrays = {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": actions,
        "rewards": 1 + actions[:, 0],
        "next_observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "terminals": np.arange(rows) % STEPS == STEPS - 1,
    }
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


@pytest.fixture
def plain():
    return Normalizer(torch.zeros(3), torch.ones(3), torch.zeros(2), torch.ones(2))


def test_hold_out_keeps_episodes_whole():
    terminals = np.zeros(103, dtype=bool)
    terminals[9:100:10] = True  # ten episodes, and three rows of an unfinished one
    train, held_out = hold_out(terminals, 0.3)
    assert sorted([*train, *held_out]) == list(range(103))
    assert (np.diff(train) > 0).all() and (np.diff(held_out) > 0).all()
    episode = np.minimum(np.arange(103) // 10, 10)
    assert set(episode[train]).isdisjoint(episode[held_out])
    assert len(set(episode[held_out])) == 3
    again = hold_out(terminals, 0.3)
    assert np.array_equal(train, again[0]) and np.array_equal(held_out, again[1])
    assert len(set(episode[hold_out(terminals, 1e-9)[1]])) == 1
    assert len(set(episode[hold_out(terminals, 0.999)[0]])) == 1
    with pytest.raises(DatasetError, match="one episode"):
        hold_out(terminals[:10], 0.5)


def test_returns_to_go_by_hand():
    rewards = np.array([1, 2, 3, 10, 0, 4], dtype=np.float32)
    ends = trajectory_ends(np.array([0, 0, 1, 0, 1, 0], dtype=bool))
    assert returns_to_go(rewards, ends, 0.5).tolist() == [2.75, 3.5, 3, 10, 0, 4]
    assert returns_to_go(rewards, np.array([5]), 0.5).tolist() == [4.125, 6.25, 8.5, 11, 2, 4]  # no terminal anywhere


@pytest.mark.parametrize("action", [0.0, 0.8, -0.8])
def test_value_of_a_policy_that_is_known(plain, action):
    """The reward of every step is 1 + a_0: the value is that times 1 + 0.9 + ... + 0.9^4."""
    arrays = log(600)
    evaluator = OfflineEvaluator(arrays, np.arange(len(arrays["rewards"])), plain, discount=DISCOUNT)
    found = evaluator(Constant([action, 0.0]))
    annuity = sum(DISCOUNT**t for t in range(STEPS))
    assert found.fqe_value == pytest.approx((1 + action) * annuity, abs=0.1 * annuity)
    assert found.behavior_value == pytest.approx(annuity, abs=0.05 * annuity)
    assert found.episodes == 600
    # (a_0 - b_0)^2 and b_1^2, b uniform in [-1, 1]: (a^2 + 1/3 + 1/3) / 2
    assert found.cloning_error == pytest.approx((action**2 + 2 / 3) / 2, abs=0.02)


def test_same_numbers_again_and_nothing_else_is_touched(plain):
    arrays = log(40)
    evaluator = OfflineEvaluator(arrays, np.arange(100), plain, discount=DISCOUNT)
    algorithm = make_algorithm("bc", 3, 2, {"hidden_sizes": [8]}, seed=1)
    before = {name: value.clone() for name, value in algorithm.state_dict().items()}
    torch.manual_seed(7)
    first = evaluator(algorithm.policy(plain))
    drawn = torch.rand(1)
    assert evaluator(algorithm.policy(plain)) == first
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), drawn)
    for name, value in algorithm.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert first.episodes == 20
