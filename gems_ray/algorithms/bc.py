"""Behaviour cloning, of all trajectories or of the best ones only."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gems_ray.algorithms.base import Algorithm, AlgorithmConfig
from gems_ray.algorithms.networks import DeterministicActor
from gems_ray.data.replay import Batch


class BCConfig(AlgorithmConfig):
    """Settings of behaviour cloning; defaults from CORL."""

    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    hidden_sizes: tuple[int, ...] = Field((256, 256), description="Hidden layers of the actor.")


class BC(Algorithm):
    """Mean squared error between policy and logged actions."""

    name = "bc"
    Config = BCConfig
    loss_names = ("actor_loss",)
    config: BCConfig

    def build(self, config: AlgorithmConfig) -> None:
        """Creates the actor."""
        assert isinstance(config, BCConfig)
        self.config = config
        self.actor = DeterministicActor(self.state_dim, self.action_dim, config.hidden_sizes).to(self.device)
        self.networks = {"actor": self.actor}
        self.optimizers = {"actor": torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True)}

    def update(self, batch: Batch, noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One update; there is no noise in it."""
        states, actions, *_ = batch
        self.updates += 1
        loss = F.mse_loss(self.actor(states), actions)
        self.step("actor", loss)
        return {"actor_loss": loss.detach()}

    def policy(self, states: Tensor) -> Tensor:
        """The actor's actions."""
        return self.actor(states)
