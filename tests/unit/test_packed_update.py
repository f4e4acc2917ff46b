"""Packs: cells that learn in one batched computation learn what they learn alone, each from its own rows and noise."""

import pytest
import torch

from gems_ray.algorithms import ALGORITHMS
from gems_ray.learning.packed_update import PackedUpdate
from tests.unit.test_algorithms import batch_for, make

UPDATES = 5
DIFFERING = {  # settings of cell i
    "td3_bc": lambda i: {"alpha": 1.0 + i, "tau": 0.01 * (i + 1), "learning_rate": 1e-3 / (i + 1), "discount": 0.9},
    "iql": lambda i: {
        "expectile": 0.6 + 0.03 * i,
        "beta": 1.0 + i,
        "tau": 0.01 * (i + 1),
        "actor_learning_rate": 1e-3 / (i + 1),
        "value_learning_rate": 2e-3 / (i + 1),
        "max_timesteps": 10 + i,
        "discount": 0.9 + 0.01 * i,
    },
    "cql": lambda i: {
        "alpha": 1.0 + i,
        "tau": 0.01 * (i + 1),
        "actor_learning_rate": 1e-3 / (i + 1),
        "discount": 0.9 + 0.01 * i,
    },
    "bc": lambda i: {"learning_rate": 1e-3 / (i + 1)},
    "bc_best": lambda i: {"learning_rate": 1e-3 / (i + 1), "best_fraction": 0.1 * (i + 1)},
    "decision_transformer": lambda i: {
        "learning_rate": 1e-3 / (i + 1),
        "warm_up_steps": i,
        "weight_decay": 0.1 * i,
        "largest_gradient_norm": 0.01 * (i + 1),
    },
}
FURTHER = [  # branches that a setting opens, alike in all cells
    ("td3_bc", {"policy_freq": 1}),
    ("iql", {"deterministic": True}),
    ("cql", {"lagrange": True, "max_target_backup": True, "backup_entropy": True, "target_update_period": 2}),
    ("cql", {"importance_sampling": False, "clip_diff_min": -1.0, "clip_diff_max": 1.0}),
    ("cql", {"automatic_entropy_tuning": False, "temperature": 0.5}),
    ("decision_transformer", {"dropout": 0.0}),
]


@pytest.fixture(autouse=True)
def double():
    """Float64, in which a different order of a sum is far from a mistake."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def small(name):
    return {"num_actions": 3} if name == "cql" else {}


def cells(name, number, **settings):
    differing = DIFFERING.get(name, lambda i: {})
    return [make(name, seed=i, **small(name), **differing(i), **settings) for i in range(number)]


def updated_together(algorithms, pack, batches):
    noise = [algorithm.draw_noise(len(batch.states)) for algorithm, batch in zip(algorithms, batches, strict=True)]
    losses = pack(batches, noise, algorithms[0].updates % algorithms[0].period)
    for algorithm in algorithms:
        algorithm.updates += 1
    return losses


def assert_close(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def assert_learns_as_alone(alone, packed):
    """Some updates of both; losses, networks, targets, moments, gradient norms and generators end alike."""
    pack = PackedUpdate(packed)
    for update in range(UPDATES):
        batches = [batch_for(algorithm, seed=100 * i + update) for i, algorithm in enumerate(alone)]
        together = updated_together(packed, pack, batches)
        for i, (algorithm, batch) in enumerate(zip(alone, batches, strict=True)):
            assert_close(algorithm.update(batch), {name: losses[i] for name, losses in together.items()})
    pack.show_gradients()
    for single, in_pack in zip(alone, packed, strict=True):
        assert_close(single.state_dict(), in_pack.state_dict())


@pytest.mark.parametrize("number", [1, 3, 9])
@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_a_cell_in_a_pack_learns_what_it_learns_alone(name, number):
    assert_learns_as_alone(cells(name, number), cells(name, number))


@pytest.mark.parametrize(("name", "settings"), FURTHER)
def test_every_branch_of_an_algorithm_can_be_packed(name, settings):
    assert_learns_as_alone(cells(name, 2, **settings), cells(name, 2, **settings))
