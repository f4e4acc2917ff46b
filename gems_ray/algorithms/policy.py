"""What an offline algorithm has learned, as a policy."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from gems_ray.algorithms.base import Algorithm
from gems_ray.data.normalizer import Normalizer
from gems_ray.flat_state import FlatState, flatten_modules
from gems_ray.policies.base import Observations, Policy, State


class LearnedPolicy(Policy):
    """The deterministic actions of an algorithm, through the normaliser of its training data.

    It shares the algorithm's networks: training that goes on changes the policy.

    Args:
        algorithm: what has learned.
        normalizer: of the data that it learned from.
    """

    kind = "learned"
    normalizer: Normalizer

    def __init__(self, algorithm: Algorithm, normalizer: Normalizer) -> None:
        self.algorithm = algorithm
        self.normalizer = normalizer

    @torch.no_grad()
    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Latents (U, Z) for beliefs (U, H)."""
        states = self.normalizer.states(torch.as_tensor(observations).to(self.algorithm.device))
        return self.normalizer.latents(self.algorithm.policy(states)), state

    def describe(self) -> dict[str, Any]:
        """Algorithm, sizes and settings."""
        raise NotImplementedError

    def tensors(self) -> FlatState:
        """Networks and normaliser."""
        normalizer = {f"normalizer.{name}": value.cpu() for name, value in self.normalizer._asdict().items()}
        return {**flatten_modules(self.algorithm.networks), **normalizer}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState) -> Self:
        """The policy of an algorithm."""
        raise NotImplementedError
