"""TD3+BC: TD3 with behaviour cloning in the actor's loss (Fujimoto & Gu 2021)."""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from gems_ray.algorithms.base import Algorithm, AlgorithmConfig, soft_update
from gems_ray.algorithms.networks import Critic, DeterministicActor
from gems_ray.data.replay import Batch


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
    hidden_sizes: tuple[int, ...] = Field((256, 256), description="Hidden layers of actor and critics.")


class TD3BC(Algorithm):
    """The update of Fujimoto & Gu (2021), eqs. 3 to 5; targets move only with the actor."""

    name = "td3_bc"
    Config = TD3BCConfig
    loss_names = ("critic_loss", "actor_loss")
    config: TD3BCConfig

    def build(self, config: AlgorithmConfig) -> None:
        """Creates actor, twin critics and their targets."""
        assert isinstance(config, TD3BCConfig)
        self.config = config
        sizes = (self.state_dim, self.action_dim, config.hidden_sizes)
        self.actor = DeterministicActor(*sizes).to(self.device)
        self.critic_1, self.critic_2 = Critic(*sizes).to(self.device), Critic(*sizes).to(self.device)
        self.networks = {"actor": self.actor, "critic_1": self.critic_1, "critic_2": self.critic_2}
        for name, network in list(self.networks.items()):
            self.networks[f"{name}_target"] = copy.deepcopy(network).requires_grad_(False)
        self.actor_target = self.networks["actor_target"]
        self.critic_targets = [self.networks["critic_1_target"], self.networks["critic_2_target"]]

        critics = [*self.critic_1.parameters(), *self.critic_2.parameters()]
        rate = config.learning_rate
        self.optimizers = {
            "actor": torch.optim.Adam(self.actor.parameters(), lr=rate, fused=True),
            "critic": torch.optim.Adam(critics, lr=rate, fused=True),
        }
        self._online = [*self.actor.parameters(), *critics]
        self._targets = [
            p for name in self.networks if name.endswith("_target") for p in self.networks[name].parameters()
        ]

    def update(self, batch: Batch, noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One update; `noise` may hold `target_eps` (B, Z) standard normal."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        rewards, dones = rewards.flatten(), dones.flatten()
        self.updates += 1

        with torch.no_grad():
            eps = self.normal("target_eps", tuple(actions.shape), noise)
            smoothing = (config.policy_noise * eps).clamp(-config.noise_clip, config.noise_clip)
            next_actions = (self.actor_target(next_states) + smoothing).clamp(-1, 1)
            next_q = torch.minimum(*(critic(next_states, next_actions) for critic in self.critic_targets))
            target = rewards + config.discount * (1 - dones) * next_q
        q_1, q_2 = self.critic_1(states, actions), self.critic_2(states, actions)
        critic_loss = F.mse_loss(q_1, target) + F.mse_loss(q_2, target)
        self.step("critic", critic_loss)
        metrics = {"critic_loss": critic_loss.detach()}

        if self.updates % config.policy_freq == 0:
            metrics |= self._update_actor(states, actions)
            soft_update(self._targets, self._online, config.tau)
        return metrics

    def policy(self, states: Tensor) -> Tensor:
        """The actor's actions."""
        return self.actor(states)

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the two critics."""
        return torch.minimum(self.critic_1(states, actions), self.critic_2(states, actions))

    def _update_actor(self, states: Tensor, actions: Tensor) -> dict[str, Tensor]:
        self.critic_1.requires_grad_(False)  # the actor's step needs no gradient of the critic's weights
        chosen = self.actor(states)
        q = self.critic_1(states, chosen)
        weight = self.config.alpha / q.abs().mean().detach()
        actor_loss = -weight * q.mean() + F.mse_loss(chosen, actions)
        self.step("actor", actor_loss)
        self.critic_1.requires_grad_(True)
        return {"actor_loss": actor_loss.detach()}
