"""Behaviour cloning: mean squared error between policy and logged actions."""

from typing import ClassVar, TypeVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import OF_SAMPLER, AlgorithmConfig, Noise
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.config import HiddenSizes
from gems_ray.data.experience import Batch
from gems_ray.networks import DeterministicActor


class BCConfig(AlgorithmConfig):
    """Settings of behaviour cloning; defaults from CORL."""

    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    hidden_sizes: HiddenSizes = Field((256, 256), description="Hidden layers of the actor.")


C = TypeVar("C", bound=BCConfig)


class Cloning(TransitionAlgorithm[C]):
    """An actor that is drawn to the logged actions."""

    loss_names = ("actor_loss",)
    per_cell: ClassVar[tuple[str, ...] | None] = ("learning_rate", "discount", *OF_SAMPLER)

    def build(self) -> None:
        """Creates the actor."""
        self.actor = DeterministicActor(self.state_dim, self.action_dim, self.config.hidden_sizes).to(self.device)
        self.networks = {"actor": self.actor}
        self.optimizers = {"actor": Adam(self.actor.parameters(), self.config.learning_rate)}

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update."""
        loss = F.mse_loss(self.actor(batch.states), batch.actions)
        self.optimizers["actor"].minimize(loss)
        return {"actor_loss": loss.detach()}

    def actions(self, states: Tensor) -> Tensor:
        """The actor's actions."""
        return self.actor(states)


class BC(Cloning[BCConfig]):
    """Cloning of everything that was logged."""

    name = "bc"
    Config = BCConfig
