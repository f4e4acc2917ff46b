"""Algorithms that learn from single transitions and act on the state alone."""

from abc import abstractmethod
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from gems_ray.algorithms.base import Algorithm, AlgorithmConfig
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.data.experience import Batch
from gems_ray.data.normalizer import Normalizer
from gems_ray.policies.base import Observations, State

C = TypeVar("C", bound=AlgorithmConfig)


class TransitionAlgorithm(Algorithm[C]):
    """Actor-critics and cloning: `learn` sees a `Batch`, and the actor sees a state."""

    @abstractmethod
    def actions(self, states: Tensor) -> Tensor:
        """Deterministic actions (B, Z) in [-1, 1] for normalised states (B, H)."""

    def predict(self, batch: Batch) -> Tensor:
        """The actor's actions (B, Z) at the states of a batch."""
        return self.actions(batch.states)

    def policy(self, normalizer: Normalizer) -> "ActorPolicy":
        """The actor as a policy."""
        return ActorPolicy(self, normalizer)

    @overload
    def act(self, observations: Tensor) -> Tensor: ...
    @overload
    def act(self, observations: np.ndarray) -> np.ndarray: ...
    @torch.no_grad()
    def act(self, observations: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Deterministic actions (B, Z) in [-1, 1] for normalised states (B, H); arrays give arrays."""
        actions = self.actions(self._tensor(observations))
        return actions if isinstance(observations, Tensor) else actions.cpu().numpy()


class ActorPolicy(LearnedPolicy[TransitionAlgorithm[Any]]):
    """The deterministic actions of an actor, which remembers nothing."""

    @torch.no_grad()
    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Latents (U, Z) for beliefs (U, H)."""
        states = self.normalizer.states(torch.as_tensor(observations).to(self.algorithm.device))
        return self.normalizer.latents(self.algorithm.actions(states)), state
