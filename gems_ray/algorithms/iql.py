"""Implicit Q-learning: expectile values and advantage-weighted cloning (Kostrikov et al. 2021)."""

import copy
import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import OF_SAMPLER, AlgorithmConfig, Noise, soft_update
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.config import HiddenSizes
from gems_ray.data.experience import Batch
from gems_ray.networks import LOG_STD_RANGE, Critic, DeterministicActor, Value


class IQLConfig(AlgorithmConfig):
    """Settings of IQL; defaults from the paper and CORL."""

    expectile: float = Field(0.7, gt=0, lt=1, description="Which expectile of Q the value follows; 0.5 is the mean.")
    beta: float = Field(3.0, ge=0, description="Inverse temperature of the advantage; 0 is pure cloning.")
    largest_weight: float = Field(100.0, gt=0, description="Bound of a transition's weight in the actor's loss.")
    tau: float = Field(0.005, ge=0, le=1, description="Polyak step of the target critics.")
    actor_learning_rate: float = Field(3e-4, gt=0, description="Adam's step size, falling to 0 by a cosine.")
    critic_learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    value_learning_rate: float = Field(3e-4, gt=0, description="Adam's step size.")
    max_timesteps: int = Field(
        1_000_000, ge=1, description="Updates over which the cosine falls; the run's if not set."
    )
    deterministic: bool = Field(False, description="Deterministic policy in place of the Gaussian one.")
    hidden_sizes: HiddenSizes = Field((256, 256), description="Hidden layers of all networks.")


class IQL(TransitionAlgorithm[IQLConfig]):
    """Kostrikov et al. (2021), eqs. 5 to 7; values, targets and advantage all from before the update."""

    name = "iql"
    Config = IQLConfig
    loss_names = ("value_loss", "critic_loss", "actor_loss")
    diagnostic_names = ("advantage_q90", "advantage_near_zero", "weight_clipped")
    per_cell = (
        "expectile",
        "beta",
        "largest_weight",
        "tau",
        "actor_learning_rate",
        "critic_learning_rate",
        "value_learning_rate",
        "max_timesteps",
        "discount",
        *OF_SAMPLER,
    )

    def build(self) -> None:
        """Creates actor, twin critics with their target, and value function."""
        config = self.config
        sizes = (self.state_dim, self.action_dim, config.hidden_sizes)
        self.actor = IQLActor(*sizes, gaussian=not config.deterministic).to(self.device)
        self.critics = TwinCritics(*sizes).to(self.device)
        self.critics_target = copy.deepcopy(self.critics).requires_grad_(False)
        self.value = StateValue(self.state_dim, config.hidden_sizes).to(self.device)
        self.networks = {
            "actor": self.actor,
            "qf": self.critics,
            "q_target": self.critics_target,
            "vf": self.value,
        }
        self.optimizers = {
            "actor": Adam(self.actor.parameters(), config.actor_learning_rate, cosine_steps=config.max_timesteps),
            "critic": Adam(self.critics.parameters(), config.critic_learning_rate),
            "value": Adam(self.value.parameters(), config.value_learning_rate),
        }

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update of value, critics, their target and actor."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        with torch.no_grad():
            target_q = torch.minimum(*self.critics_target(states, actions))
            target = rewards.flatten() + config.discount * (1 - dones.flatten()) * self.value(next_states)

        advantage = target_q - self.value(states)
        weight = (config.expectile - (advantage.detach() < 0).to(advantage.dtype)).abs()
        value_loss = (weight * advantage.square()).mean()
        self.optimizers["value"].minimize(value_loss)

        q_1, q_2 = self.critics(states, actions)
        critic_loss = (F.mse_loss(q_1, target) + F.mse_loss(q_2, target)) / 2
        self.optimizers["critic"].minimize(critic_loss)
        soft_update(list(self.critics_target.parameters()), list(self.critics.parameters()), config.tau)

        imitation = (config.beta * advantage.detach()).exp().clamp(max=config.largest_weight)
        actor_loss = (imitation * self.actor.cloning_loss(states, actions)).mean()
        self.optimizers["actor"].minimize(actor_loss)
        losses = {"value_loss": value_loss, "critic_loss": critic_loss, "actor_loss": actor_loss}
        return {name: loss.detach() for name, loss in losses.items()}

    def actions(self, states: Tensor) -> Tensor:
        """The mean action."""
        return self.actor(states)

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the two critics."""
        return torch.minimum(*self.critics(states, actions))

    def next_values(self, next_states: Tensor) -> Tensor:
        """The value function."""
        return self.value(next_states)

    def diagnose(self, batch: Batch) -> dict[str, Tensor]:
        """Where the advantages min Q' - V of logged actions stand.

        `advantage_q90` is their 90% quantile, `advantage_near_zero` the share that changes a transition's weight by
        less than a tenth: there the policy is plain cloning. `weight_clipped` is the share at the largest weight.
        """
        advantage = torch.minimum(*self.critics_target(batch.states, batch.actions)) - self.value(batch.states)
        weight = (self.config.beta * advantage).exp()
        return {
            "advantage_q90": advantage.quantile(0.9),
            "advantage_near_zero": ((weight > 0.9) & (weight < 1.1)).to(advantage.dtype).mean(),
            "weight_clipped": (weight > self.config.largest_weight).to(advantage.dtype).mean(),
        }


class IQLActor(nn.Module):
    """States (B, H) to mean actions (B, Z) in [-1, 1], with a deviation per dimension where it is Gaussian."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: tuple[int, ...], gaussian: bool) -> None:
        super().__init__()
        self.net = DeterministicActor(state_dim, action_dim, hidden_sizes)
        self.log_std = nn.Parameter(torch.zeros(action_dim)) if gaussian else None

    def forward(self, states: Tensor) -> Tensor:
        """The mean action of every state."""
        return self.net(states)

    def cloning_loss(self, states: Tensor, actions: Tensor) -> Tensor:
        """Negative log-likelihood (B,) of the actions, or their squared distance."""
        error = (self.net(states) - actions).square()
        if self.log_std is None:
            return error.sum(dim=1)
        log_std = self.log_std.clamp(*LOG_STD_RANGE)
        return (0.5 * error * (-2 * log_std).exp() + log_std + 0.5 * math.log(2 * math.pi)).sum(dim=1)


class TwinCritics(nn.Module):
    """Two critics that share nothing."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.q1 = Critic(state_dim, action_dim, hidden_sizes)
        self.q2 = Critic(state_dim, action_dim, hidden_sizes)

    def forward(self, states: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Both values, (B,) each."""
        return self.q1(states, actions), self.q2(states, actions)


class StateValue(nn.Module):
    """States (B, H) to values (B,)."""

    def __init__(self, state_dim: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.v = Value(state_dim, hidden_sizes)

    def forward(self, states: Tensor) -> Tensor:
        """The value of every state."""
        return self.v(states)
