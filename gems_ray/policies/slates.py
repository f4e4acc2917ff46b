"""Policies that choose slates without looking at the user: the references of every table, and the ranker's logger."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gems_ray.config import build
from gems_ray.flat_state import FlatState
from gems_ray.policies.base import Observations, Policy, Random, State
from gems_ray.registry import Registry
from gems_ray.simulator.environments import Environment
from gems_ray.simulator.topic_rec import EMPTY


class DrawsSlates(Protocol):
    """Slates (U, K) int64 for `users` users; -1 asks for the oracle's item."""

    def __call__(self, environment: Environment, users: int, rng: np.random.Generator) -> np.ndarray: ...  # noqa: D102


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


SLATE_POLICIES: Registry[DrawsSlates] = Registry(
    "slate policy",
    {"random": random_slates, "oracle": short_term_oracle, "epsilon_greedy_oracle": epsilon_greedy_oracle},
)


class SlatePolicy(Policy):
    """One of SLATE_POLICIES, for the users of an environment.

    Args:
        name: of SLATE_POLICIES.
        environment: numbers of items and slots.
        random: NumPy's source of the slates; a fixed one when None.
    Raises:
        UnknownNameError: no slate policy has this name.
    """

    kind = "slates"
    chooses = "slates"

    def __init__(self, name: str, environment: Environment, random: np.random.Generator | None = None) -> None:
        self.name, self.environment = name, environment
        self._draw = SLATE_POLICIES[name]
        self._random = np.random.default_rng(0) if random is None else random

    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Slates (U, K) int64; -1 asks for the oracle's item."""
        return torch.from_numpy(self._draw(self.environment, len(observations), self._random)), state

    def reseed(self, random: Random) -> None:
        """Takes another source of slates."""
        assert isinstance(random, np.random.Generator)
        self._random = random

    def describe(self) -> dict[str, Any]:
        """Name and environment."""
        return {"name": self.name, "environment": asdict(self.environment)}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState) -> "Policy":
        """The policy of a name."""
        return cls(description["name"], build(Environment, description["environment"]))
