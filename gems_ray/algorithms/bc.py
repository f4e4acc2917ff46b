"""Behaviour cloning: mean squared error between policy and logged actions."""

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import Algorithm, AlgorithmConfig, Noise
from gems_ray.algorithms.networks import DeterministicActor
from gems_ray.config import HiddenSizes
from gems_ray.data.replay import Batch


class BCConfig(AlgorithmConfig):
    """Settings of behaviour cloning; defaults from CORL."""

    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    hidden_sizes: HiddenSizes = Field((256, 256), description="Hidden layers of the actor.")


class BC(Algorithm):
    """Cloning of everything that was logged."""

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
        self.optimizers = {"actor": Adam(self.actor.parameters(), config.learning_rate)}

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update."""
        loss = F.mse_loss(self.actor(batch.states), batch.actions)
        self.optimizers["actor"].minimize(loss)
        return {"actor_loss": loss.detach()}

    def policy(self, states: Tensor) -> Tensor:
        """The actor's actions."""
        return self.actor(states)
