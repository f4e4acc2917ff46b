"""Policies that choose latents and are not learned offline: random latents and behaviour agents."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gems_ray.action_box import ActionBox
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.policies.base import Observations, Policy, Random, State, standard_normal, uniform
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief


class RandomLatents(Policy):
    """Latents uniform in the inner half of the action box, whatever is observed.

    Args:
        bounds: action box.
        random: source of the latents; a fixed one when None.
    """

    kind = "random_latents"

    def __init__(self, bounds: ActionBox, random: Random | None = None) -> None:
        self.bounds = bounds
        self._random = np.random.default_rng(0) if random is None else random

    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Random latents (U, Z)."""
        numbers = uniform(self._random, len(observations), len(self.bounds.center))
        return torch.from_numpy(self.bounds.random_latents(numbers.numpy())), state

    def reseed(self, random: Random) -> None:
        """Takes another source of latents."""
        self._random = random

    def describe(self) -> dict[str, Any]:
        """Nothing besides the box."""
        return {}

    def tensors(self) -> FlatState:
        """The box."""
        return {"center": torch.from_numpy(self.bounds.center), "scale": torch.from_numpy(self.bounds.scale)}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState) -> "Policy":
        """The policy of a box."""
        return cls(ActionBox(tensors["center"].numpy(), tensors["scale"].numpy()))


class MeanAgent(Policy):
    """The mean action of a behaviour agent, on the beliefs of the agent's own encoder.

    Args:
        agent: actor and belief encoder.
    """

    kind = "mean_agent"

    def __init__(self, agent: BehaviorAgent) -> None:
        self.agent = agent
        self.encoder = agent.belief

    @torch.no_grad()
    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Mean actions (U, Z)."""
        return self.agent.act(torch.as_tensor(observations)), state

    def describe(self) -> dict[str, Any]:
        """Sizes of the agent's networks."""
        return {"agent": self.agent.sizes()}

    def tensors(self) -> FlatState:
        """Weights of the agent."""
        return flatten_modules({"agent": self.agent})

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState) -> "Policy":
        """The policy of an agent."""
        sizes = dict(description["agent"])
        bounds = ActionBox(tensors["agent.center"].numpy(), tensors["agent.scale"].numpy())
        hidden_size = sizes.pop("hidden_size")
        agent = BehaviorAgent(GruBelief(**sizes), bounds, hidden_size)
        load_modules({"agent": agent}, tensors)
        return cls(agent.requires_grad_(False))


class SampledAgent(MeanAgent):
    """Samples of a behaviour agent's distribution.

    Args:
        agent: actor and belief encoder.
        random: source of the noise; a fixed one when None.
    """

    kind = "sampled_agent"

    def __init__(self, agent: BehaviorAgent, random: Random | None = None) -> None:
        super().__init__(agent)
        self._random = np.random.default_rng(0) if random is None else random

    @torch.no_grad()
    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """Sampled actions (U, Z)."""
        noise = standard_normal(self._random, len(observations), len(self.agent.center))
        return self.agent.act(torch.as_tensor(observations), noise), state

    def reseed(self, random: Random) -> None:
        """Takes another source of noise."""
        self._random = random
