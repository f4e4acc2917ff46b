"""Policies over the simulator itself: reference rows of every table, and the policy that logs the ranker's data."""

from typing import Protocol

import numpy as np

from gems_ray.registry import Registry
from gems_ray.simulator.environments import Environment
from gems_ray.simulator.topic_rec import EMPTY


class SlatePolicy(Protocol):
    """Chooses slates without looking at the user: (U, K) int64, -1 asks for the oracle's item."""

    def __call__(self, environment: Environment, users: int, rng: np.random.Generator) -> np.ndarray:
        """Slates for `users` users."""


def random_slates(environment: Environment, users: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct items drawn uniformly: (U, K) int64."""
    # Floyd's sampling without replacement, all users at once: a repeated draw becomes the newest candidate.
    size, items = environment.slate_size, environment.num_items
    slates = np.empty((users, size), dtype=np.int64)
    for place, newest in enumerate(range(items - size, items)):
        drawn = rng.integers(newest + 1, size=users)
        repeated = (slates[:, :place] == drawn[:, None]).any(axis=1)
        slates[:, place] = np.where(repeated, newest, drawn)
    return rng.permuted(slates, axis=1)


def short_term_oracle(environment: Environment, users: int, rng: np.random.Generator) -> np.ndarray:
    """The items of highest score for each user's present preference: -1 in every slot."""
    return np.full((users, environment.slate_size), EMPTY, dtype=np.int64)


def epsilon_greedy_oracle(
    environment: Environment, users: int, rng: np.random.Generator, epsilon: float = 0.5
) -> np.ndarray:
    """The oracle with every slot replaced by a random item with probability epsilon; (U, K) int64."""
    slates = random_slates(environment, users, rng)
    slates[rng.random(slates.shape) >= epsilon] = EMPTY
    return slates


SLATE_POLICIES: Registry[SlatePolicy] = Registry(
    "slate policy",
    {"random": random_slates, "oracle": short_term_oracle, "epsilon_greedy_oracle": epsilon_greedy_oracle},
)
