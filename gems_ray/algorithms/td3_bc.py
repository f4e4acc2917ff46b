"""TD3+BC: TD3 with behaviour cloning in the actor's loss (Fujimoto & Gu 2021)."""

import copy

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import OF_SAMPLER, AlgorithmConfig, Noise, soft_update
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.config import HiddenSizes
from gems_ray.data.experience import Batch
from gems_ray.networks import Critic, DeterministicActor


class TD3BCConfig(AlgorithmConfig):
    """Settings of TD3+BC; defaults from the paper and CORL."""

    alpha: float = Field(
        2.5,
        ge=0,
        description="Weight of the Q term: larger means more reinforcement learning, 0 is pure behaviour cloning.",
    )
    tau: float = Field(0.005, ge=0, le=1, description="Polyak step of the targets.")
    learning_rate: float = Field(3e-4, gt=0, description="Adam's step size for actor and critics.")
    policy_noise: float = Field(0.2, ge=0, description="Deviation of the target action's noise, normalised units.")
    noise_clip: float = Field(0.5, ge=0, description="Largest target noise, normalised units.")
    policy_freq: int = Field(2, ge=1, description="Updates of the critics per update of actor and targets.")
    hidden_sizes: HiddenSizes = Field((256, 256), description="Hidden layers of actor and critics.")


class TD3BC(TransitionAlgorithm[TD3BCConfig]):
    """The update of Fujimoto & Gu (2021), eqs. 3 to 5; targets move only with the actor."""

    name = "td3_bc"
    Config = TD3BCConfig
    loss_names = ("critic_loss", "actor_loss")
    per_cell = ("alpha", "tau", "learning_rate", "policy_noise", "noise_clip", "discount", *OF_SAMPLER)

    def build(self) -> None:
        """Creates actor, twin critics and their targets."""
        config = self.config
        self.period = config.policy_freq
        sizes = (self.state_dim, self.action_dim, config.hidden_sizes)
        self.actor = DeterministicActor(*sizes).to(self.device)
        self.critic_1, self.critic_2 = Critic(*sizes).to(self.device), Critic(*sizes).to(self.device)
        online = {"actor": self.actor, "critic_1": self.critic_1, "critic_2": self.critic_2}
        targets = {f"{name}_target": copy.deepcopy(net).requires_grad_(False) for name, net in online.items()}
        self.networks = {**online, **targets}
        self.actor_target, self.critic_1_target, self.critic_2_target = targets.values()
        self.optimizers = {
            "actor": Adam(self.actor.parameters(), config.learning_rate),
            "critic": Adam([*self.critic_1.parameters(), *self.critic_2.parameters()], config.learning_rate),
        }
        self._online = [parameter for network in online.values() for parameter in network.parameters()]
        self._targets = [parameter for network in targets.values() for parameter in network.parameters()]

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        """`target_eps` (B, Z), standard normal."""
        return {"target_eps": self.normal(batch_size, self.action_dim)}

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update of the critics, and in the last phase of actor and targets."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        with torch.no_grad():
            smoothing = (config.policy_noise * noise["target_eps"]).clamp(-config.noise_clip, config.noise_clip)
            next_actions = (self.actor_target(next_states) + smoothing).clamp(-1, 1)
            next_q = torch.minimum(
                self.critic_1_target(next_states, next_actions), self.critic_2_target(next_states, next_actions)
            )
            target = rewards.flatten() + config.discount * (1 - dones.flatten()) * next_q
        q_1, q_2 = self.critic_1(states, actions), self.critic_2(states, actions)
        critic_loss = F.mse_loss(q_1, target) + F.mse_loss(q_2, target)
        self.optimizers["critic"].minimize(critic_loss)
        losses = {"critic_loss": critic_loss.detach()}

        if phase == config.policy_freq - 1:
            chosen = self.actor(states)
            q = self.critic_1(states, chosen)
            weight = config.alpha / q.abs().mean().detach()
            actor_loss = -weight * q.mean() + F.mse_loss(chosen, actions)
            self.optimizers["actor"].minimize(actor_loss)
            losses["actor_loss"] = actor_loss.detach()
            soft_update(self._targets, self._online, config.tau)
        return losses

    def first_alike(self, phase: int) -> int:
        """Only the last phase moves the actor and the targets."""
        return phase if phase == self.period - 1 else 0

    def actions(self, states: Tensor) -> Tensor:
        """The actor's actions."""
        return self.actor(states)

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the two critics."""
        return torch.minimum(self.critic_1(states, actions), self.critic_2(states, actions))

    def next_values(self, next_states: Tensor) -> Tensor:
        """The smaller target critic at the target actor's actions, without their noise."""
        actions = self.actor_target(next_states)
        return torch.minimum(self.critic_1_target(next_states, actions), self.critic_2_target(next_states, actions))
