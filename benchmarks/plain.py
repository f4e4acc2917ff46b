"""The yardstick of `algorithms.py`: every update in the plain eager form of the public single-file implementations.

Autograd through separate networks, torch.optim.Adam as it comes, one Polyak step per tensor, one randint per update
over a dataset that was normalised before. The networks are copies of an algorithm's own, so that the same batch and
noise must lead to the same weights; `tests/unit/test_plain.py` checks it.
"""

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gems_ray.algorithms import Algorithm

Columns = tuple[Tensor, ...]  # states, actions, rewards, next states, dones


def sample(columns: Columns, batch_size: int) -> Columns:
    """A batch drawn with replacement."""
    rows = torch.randint(len(columns[0]), (batch_size,))
    return tuple(column[rows] for column in columns)


class Plain:
    """Copies of an algorithm's networks, an optimiser for each that is trained."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.config = algorithm.config
        self.networks = copy.deepcopy(algorithm.networks)
        self.updates = 0

    def step(self, loss: Tensor, *optimizers: torch.optim.Optimizer) -> None:
        """A gradient step of one loss."""
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()

    def polyak(self, source: nn.Module, target: nn.Module) -> None:
        """Moves a target network, tensor by tensor."""
        for parameter, moved in zip(source.parameters(), target.parameters(), strict=True):
            moved.data.copy_(self.config.tau * parameter.data + (1 - self.config.tau) * moved.data)


class PlainBC(Plain):
    """Behaviour cloning."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithm)
        self.actor = self.networks["actor"]
        self.optimizer = torch.optim.Adam(self.actor.parameters(), lr=self.config.learning_rate)

    def update(self, batch: Columns, noise: Mapping[str, Tensor] | None = None) -> None:
        """One update."""
        states, actions, *_ = batch
        self.step(F.mse_loss(self.actor(states), actions), self.optimizer)


class PlainTD3BC(Plain):
    """TD3+BC."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithm)
        self.actor, self.critic_1, self.critic_2, self.actor_target, self.target_1, self.target_2 = (
            self.networks.values()
        )
        rate = self.config.learning_rate
        self.actor_optimizer, self.optimizer_1, self.optimizer_2 = (
            torch.optim.Adam(network.parameters(), lr=rate) for network in (self.actor, self.critic_1, self.critic_2)
        )

    def update(self, batch: Columns, noise: Mapping[str, Tensor] | None = None) -> None:
        """One update."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        self.updates += 1
        with torch.no_grad():
            eps = torch.randn_like(actions) if noise is None else noise["target_eps"]
            eps = (eps * config.policy_noise).clamp(-config.noise_clip, config.noise_clip)
            next_actions = (self.actor_target(next_states) + eps).clamp(-1, 1)
            next_q = torch.min(self.target_1(next_states, next_actions), self.target_2(next_states, next_actions))
            target = rewards.squeeze(1) + (1 - dones.squeeze(1)) * config.discount * next_q
        q_1, q_2 = self.critic_1(states, actions), self.critic_2(states, actions)
        self.step(F.mse_loss(q_1, target) + F.mse_loss(q_2, target), self.optimizer_1, self.optimizer_2)
        if self.updates % config.policy_freq == 0:
            chosen = self.actor(states)
            q = self.critic_1(states, chosen)
            weight = config.alpha / q.abs().mean().detach()
            self.step(-weight * q.mean() + F.mse_loss(chosen, actions), self.actor_optimizer)
            self.polyak(self.critic_1, self.target_1)
            self.polyak(self.critic_2, self.target_2)
            self.polyak(self.actor, self.actor_target)


class PlainIQL(Plain):
    """IQL with the Gaussian or the deterministic policy."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithm)
        self.actor, self.critics, self.target, self.value = self.networks.values()
        config = self.config
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_learning_rate)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=config.critic_learning_rate)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=config.value_learning_rate)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimizer, config.max_timesteps)

    def update(self, batch: Columns, noise: Mapping[str, Tensor] | None = None) -> None:
        """One update."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        with torch.no_grad():
            next_value = self.value(next_states)
            target_q = torch.min(*self.target(states, actions))
        advantage = target_q - self.value(states)
        value_loss = torch.mean(torch.abs(config.expectile - (advantage < 0).float()) * advantage**2)
        self.step(value_loss, self.value_optimizer)
        target = rewards.squeeze(1) + (1 - dones.squeeze(1)) * config.discount * next_value
        q_1, q_2 = self.critics(states, actions)
        self.step((F.mse_loss(q_1, target) + F.mse_loss(q_2, target)) / 2, self.critic_optimizer)
        self.polyak(self.critics, self.target)
        weight = torch.exp(config.beta * advantage.detach()).clamp(max=config.largest_weight)
        mean = self.actor(states)
        if self.actor.log_std is None:
            cloning = torch.sum((mean - actions) ** 2, dim=1)
        else:
            deviation = torch.exp(self.actor.log_std.clamp(-20, 2))
            cloning = -torch.distributions.Normal(mean, deviation).log_prob(actions).sum(dim=1)
        self.step(torch.mean(weight * cloning), self.actor_optimizer)
        self.schedule.step()


class PlainCQL(Plain):
    """CQL with importance sampling, the defaults."""

    def __init__(self, algorithm: Algorithm) -> None:
        super().__init__(algorithm)
        networks, config = self.networks, self.config
        self.critic_1, self.critic_2, self.actor = networks["critic_1"], networks["critic_2"], networks["actor"]
        self.target_1, self.target_2 = networks["critic_1_target"], networks["critic_2_target"]
        self.log_alpha = networks["log_alpha"]
        self.alpha_optimizer = torch.optim.Adam(self.log_alpha.parameters(), lr=config.actor_learning_rate)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=config.actor_learning_rate)
        critics = [*self.critic_1.parameters(), *self.critic_2.parameters()]
        self.critic_optimizer = torch.optim.Adam(critics, lr=config.critic_learning_rate)

    def act(self, states: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and their log-densities for states (..., H)."""
        mean, log_std = self.actor.gaussian(states)
        before = mean + log_std.exp() * eps
        normal = torch.distributions.Normal(mean, log_std.exp()).log_prob(before)
        slope = 2 * (math.log(2) - before - F.softplus(-2 * before))
        return torch.tanh(before), (normal - slope).sum(dim=-1)

    def update(self, batch: Columns, noise: Mapping[str, Tensor] | None = None) -> None:
        """One update; every sampled action is a row of the actor and of the critics."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        size, action_dim = actions.shape
        many = (size, config.num_actions, action_dim)
        if noise is None:
            noise = {name: torch.randn_like(actions) for name in ("pi_eps", "next_eps")}
            noise |= {name: torch.randn(many) for name in ("cql_cur_eps", "cql_next_eps")}
            noise["rand_actions"] = torch.empty(many).uniform_(-1, 1)
        chosen, log_pi = self.act(states, noise["pi_eps"])
        alpha_loss = -(self.log_alpha() * (log_pi + -float(action_dim)).detach()).mean()
        alpha = self.log_alpha().exp().detach()
        q = torch.min(self.critic_1(states, chosen), self.critic_2(states, chosen))
        actor_loss = (alpha * log_pi - q).mean()

        with torch.no_grad():
            next_actions, _ = self.act(next_states, noise["next_eps"])
            next_q = torch.min(self.target_1(next_states, next_actions), self.target_2(next_states, next_actions))
            target = rewards.squeeze(1) + (1 - dones.squeeze(1)) * config.discount * next_q
        repeated = states[:, None].expand(-1, config.num_actions, -1)
        repeated_next = next_states[:, None].expand(-1, config.num_actions, -1)
        current, current_log_pi = (value.detach() for value in self.act(repeated, noise["cql_cur_eps"]))
        following, following_log_pi = (value.detach() for value in self.act(repeated_next, noise["cql_next_eps"]))
        loss = torch.zeros(())
        for critic in (self.critic_1, self.critic_2):
            predicted = critic(states, actions)
            scores = torch.cat(
                [
                    critic(repeated, noise["rand_actions"]) - action_dim * math.log(0.5),
                    critic(repeated, following) - following_log_pi,
                    critic(repeated, current) - current_log_pi,
                ],
                dim=1,
            )
            soft_maximum = torch.logsumexp(scores / config.temperature, dim=1) * config.temperature
            loss = loss + F.mse_loss(predicted, target) + config.alpha * (soft_maximum - predicted).mean()
        self.alpha_optimizer.zero_grad()
        alpha_loss.backward()
        self.alpha_optimizer.step()
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        self.step(loss, self.critic_optimizer)
        self.polyak(self.critic_1, self.target_1)
        self.polyak(self.critic_2, self.target_2)


PLAIN: dict[str, type[Plain]] = {"td3_bc": PlainTD3BC, "iql": PlainIQL, "cql": PlainCQL, "bc": PlainBC}
