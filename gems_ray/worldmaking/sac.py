"""The update of SAC+GeMS: twin critics with a belief encoder of their own, and an entropy temperature."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gems_ray.algorithms.base import soft_update
from gems_ray.networks import mlp
from gems_ray.world.agent import BehaviorAgent


@dataclass(frozen=True, slots=True)
class SacConfig:
    """Settings of the SAC+GeMS update; defaults from the authors' program unless said otherwise."""

    discount: float = 0.8
    tau: float = 0.002  # Polyak step of the target critics, at every update
    critic_learning_rate: float = 1e-3
    actor_learning_rate: float = 3e-3
    alpha_learning_rate: float = 1e-3
    initial_alpha: float = 1.0  # entropy temperature before the first update
    hidden_size: int = 256


@dataclass(frozen=True, slots=True)
class Trajectories:
    """A batch of B episodes of up to T steps, padded at the end.

    Args:
        slates: (B, T, K) int64, what the agent saw before it acted.
        clicks: (B, T, K), 0 or 1.
        actions: (B, T, Z) float32, latent units.
        rewards: (B, T) float32.
        lengths: (B,) int64, steps of each episode; its last step ends it.
    """

    slates: Tensor
    clicks: Tensor
    actions: Tensor
    rewards: Tensor
    lengths: Tensor


@dataclass(frozen=True, slots=True)
class SacLosses:
    """Losses of one update; each a detached scalar tensor."""

    critic: Tensor
    actor: Tensor
    alpha: Tensor


class SacGems:
    """Trains a `BehaviorAgent` with twin critics that have a belief encoder of their own.

    The entropy temperature of an update is the one that the update before it left.

    Args:
        agent: actor; its parameters are changed in place.
        config: settings of the update.
    """

    def __init__(self, agent: BehaviorAgent, config: SacConfig) -> None:
        self.agent = agent
        self.config = config
        inputs = agent.belief.belief_dim + len(agent.center)
        self.critic_belief = copy.deepcopy(agent.belief)
        self.critic_1 = mlp([inputs, config.hidden_size, 1])
        self.critic_2 = mlp([inputs, config.hidden_size, 1])
        self.critic_1_target = copy.deepcopy(self.critic_1).requires_grad_(False)
        self.critic_2_target = copy.deepcopy(self.critic_2).requires_grad_(False)
        self.log_alpha = torch.tensor(math.log(config.initial_alpha), requires_grad=True)
        self.alpha = torch.tensor(config.initial_alpha)
        self.target_entropy = -float(len(agent.center))
        critic = [*self.critic_1.parameters(), *self.critic_2.parameters(), *self.critic_belief.parameters()]
        self.optimizers = {
            "critic": torch.optim.Adam(critic, lr=config.critic_learning_rate, fused=True),
            "actor": torch.optim.Adam(agent.parameters(), lr=config.actor_learning_rate, fused=True),
            "alpha": torch.optim.Adam([self.log_alpha], lr=config.alpha_learning_rate),
        }

    def modules(self) -> dict[str, nn.Module]:
        """All networks by name."""
        return {
            "agent": self.agent,
            "critic_belief": self.critic_belief,
            "critic_1": self.critic_1,
            "critic_2": self.critic_2,
            "critic_1_target": self.critic_1_target,
            "critic_2_target": self.critic_2_target,
        }

    def scale_learning_rates(self, share: float) -> None:
        """Sets the learning rates of critics and actor to a share of the configured ones."""
        rates = {"critic": self.config.critic_learning_rate, "actor": self.config.actor_learning_rate}
        for name, rate in rates.items():
            for group in self.optimizers[name].param_groups:
                group["lr"] = share * rate

    def update(self, batch: Trajectories, next_noise: Tensor, policy_noise: Tensor) -> SacLosses:
        """One gradient step of critics, actor and temperature, then of the target critics.

        Args:
            batch: whole episodes.
            next_noise: (B, T - 1, Z) standard normal, for the actions at the next states.
            policy_noise: (B, T, Z) standard normal, for the actions of the policy loss.
        """
        agent, alpha = self.agent, self.alpha
        steps = torch.arange(batch.rewards.shape[1])
        valid = (steps < batch.lengths[:, None]).to(batch.rewards.dtype)  # (B, T)
        weight = valid / valid.sum()
        beliefs = agent.belief(batch.slates, batch.clicks)  # (B, T, H)
        critic_beliefs = self.critic_belief(batch.slates, batch.clicks)

        with torch.no_grad():
            target = batch.rewards.clone()
            next_action, next_log_probability = agent.sample(beliefs[:, 1:], next_noise)
            next_input = torch.cat([critic_beliefs[:, 1:], next_action], dim=-1)
            next_q = torch.minimum(self.critic_1_target(next_input), self.critic_2_target(next_input)).squeeze(-1)
            goes_on = steps[1:] < batch.lengths[:, None]  # the step before is not the last
            target[:, :-1] += self.config.discount * goes_on * (next_q - alpha * next_log_probability)

        critic_input = torch.cat([critic_beliefs, batch.actions], dim=-1)
        errors = [critic(critic_input).squeeze(-1) - target for critic in (self.critic_1, self.critic_2)]
        critic_loss = 0.5 * sum((weight * error.square()).sum() for error in errors)
        assert isinstance(critic_loss, Tensor)
        self._step("critic", critic_loss)

        action, log_probability = agent.sample(beliefs, policy_noise)
        policy_input = torch.cat([critic_beliefs.detach(), action], dim=-1)
        for critic in (self.critic_1, self.critic_2):
            critic.requires_grad_(False)
        q = torch.minimum(self.critic_1(policy_input), self.critic_2(policy_input)).squeeze(-1)
        actor_loss = (weight * (alpha * log_probability - q)).sum()
        self._step("actor", actor_loss)
        for critic in (self.critic_1, self.critic_2):
            critic.requires_grad_(True)

        surplus = (weight * (log_probability.detach() + self.target_entropy)).sum()
        alpha_loss = -self.log_alpha.exp() * surplus
        self._step("alpha", alpha_loss)
        self.alpha = self.log_alpha.detach().exp()

        for critic, slow in ((self.critic_1, self.critic_1_target), (self.critic_2, self.critic_2_target)):
            soft_update(list(slow.parameters()), list(critic.parameters()), self.config.tau)
        return SacLosses(critic_loss.detach(), actor_loss.detach(), alpha_loss.detach())

    def _step(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
