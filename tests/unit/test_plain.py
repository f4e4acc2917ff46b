"""The yardstick of the benchmarks computes the same updates: else its ratios would mean nothing."""

import importlib.util
from pathlib import Path

import pytest
import torch

from gems_ray.algorithms import make_algorithm
from tests.unit.test_algorithms import random_batch

SPEC = importlib.util.spec_from_file_location("plain", Path(__file__).parents[2] / "benchmarks" / "plain.py")
plain = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plain)


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", sorted(plain.PLAIN))
def test_same_weights_after_five_updates(name, double):
    algorithm = make_algorithm(name, 20, 32, {"hidden_sizes": [32, 32], "batch_size": 64})
    yardstick = plain.PLAIN[name](algorithm)
    for seed in range(5):
        batch, noise = random_batch(seed=seed), algorithm.draw_noise(64)
        algorithm.update(batch, noise)
        yardstick.update(batch, noise)
    for key, network in algorithm.networks.items():
        for ours, theirs in zip(network.parameters(), yardstick.networks[key].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
