"""Conservative Q-learning on a soft actor-critic (Kumar et al. 2020)."""

import copy
import math

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import OF_SAMPLER, AlgorithmConfig, Noise, soft_update
from gems_ray.algorithms.conservative import conservative_gradients
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.config import HiddenSizes, blame
from gems_ray.data.experience import Batch
from gems_ray.errors import Mistake
from gems_ray.networks import LOG_STD_RANGE, mlp, squash

LARGEST_ALPHA_PRIME = 1e6


class CQLConfig(AlgorithmConfig):
    """Settings of CQL; defaults from CORL."""

    alpha: float = Field(10.0, ge=0, description="Weight of the conservative term; larger is more conservative.")
    num_actions: int = Field(10, ge=1, description="Sampled actions per state and source in the conservative term.")
    temperature: float = Field(1.0, gt=0, description="Temperature of the log-sum-exp over actions.")
    importance_sampling: bool = Field(True, description="Weigh sampled actions by their density.")
    lagrange: bool = Field(False, description="Tune the weight so that the gap comes to target_action_gap.")
    target_action_gap: float = Field(-1.0, description="Gap that the Lagrange multiplier aims at.")
    max_target_backup: bool = Field(False, description="Target from the best of num_actions next actions.")
    backup_entropy: bool = Field(False, description="Entropy bonus in the critics' target.")
    clip_diff_min: float | None = Field(None, description="Lower bound of the gap per state.")
    clip_diff_max: float | None = Field(None, description="Upper bound of the gap per state.")
    tau: float = Field(0.005, ge=0, le=1, description="Polyak step of the target critics.")
    target_update_period: int = Field(1, ge=1, description="Updates per step of the targets.")
    actor_learning_rate: float = Field(3e-5, gt=0, description="Adam's step size for actor and entropy temperature.")
    critic_learning_rate: float = Field(3e-4, gt=0, description="Adam's step size for critics and multiplier.")
    target_entropy: float | None = Field(None, description="Entropy that is aimed at; -Z when not set.")
    automatic_entropy_tuning: bool = Field(
        True,
        description="Tune the entropy temperature towards target_entropy; false keeps it at alpha_multiplier "
        "(CORL: use_automatic_entropy_tuning).",
    )
    alpha_multiplier: float = Field(
        1.0,
        ge=0,
        description="What multiplies the entropy temperature, and is the temperature when that is not tuned (CORL: "
        "alpha_multiplier); the conservative term's weight is alpha.",
    )
    hidden_sizes: HiddenSizes = Field((256, 256, 256), description="Hidden layers of all networks.")

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "CQLConfig":
        low, high = self.clip_diff_min, self.clip_diff_max
        if low is not None and high is not None and low > high:
            expected = f"expected at most clip_diff_max, {high:g}"
            raise blame(Mistake(("clip_diff_min",), expected=expected, found=f"{low:g}"))
        return self


class CQL(TransitionAlgorithm[CQLConfig]):
    """Kumar et al. (2020), eq. 4 (CQL(H)); every loss is of the parameters from before the update."""

    name = "cql"
    Config = CQLConfig
    loss_names = ("critic_loss", "actor_loss", "conservative_gap", "entropy", "alpha_entropy", "alpha_prime")
    per_cell = (
        "alpha",
        "tau",
        "actor_learning_rate",
        "critic_learning_rate",
        "alpha_multiplier",
        "discount",
        *OF_SAMPLER,
    )

    def build(self) -> None:
        """Creates actor, twin critics with their targets, temperature and multiplier."""
        config = self.config
        self.period = config.target_update_period
        self.evaluations_per_row = 3 * config.num_actions + 1
        sizes = (self.state_dim, self.action_dim, config.hidden_sizes)
        self.critic_1, self.critic_2 = CQLCritic(*sizes).to(self.device), CQLCritic(*sizes).to(self.device)
        self.actor = TanhGaussianActor(*sizes).to(self.device)
        self.critic_1_target = copy.deepcopy(self.critic_1).requires_grad_(False)
        self.critic_2_target = copy.deepcopy(self.critic_2).requires_grad_(False)
        self.log_alpha, self.log_alpha_prime = Scalar(0.0).to(self.device), Scalar(1.0).to(self.device)
        names = ("critic_1", "critic_2", "actor", "critic_1_target", "critic_2_target", "log_alpha", "log_alpha_prime")
        self.networks = {name: getattr(self, name) for name in names}
        self.optimizers = {
            "alpha": Adam(self.log_alpha.parameters(), config.actor_learning_rate),
            "actor": Adam(self.actor.parameters(), config.actor_learning_rate),
            "critic_1": Adam(self.critic_1.parameters(), config.critic_learning_rate),
            "critic_2": Adam(self.critic_2.parameters(), config.critic_learning_rate),
            "alpha_prime": Adam(self.log_alpha_prime.parameters(), config.critic_learning_rate),
        }
        self._target_entropy = -float(self.action_dim) if config.target_entropy is None else config.target_entropy
        self._online = [*self.critic_1.parameters(), *self.critic_2.parameters()]
        self._targets = [*self.critic_1_target.parameters(), *self.critic_2_target.parameters()]

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        """Standard normals for the actions sampled from the policy, and uniform actions `rand_actions` (B, n, Z).

        `pi_eps` (B, Z) is for the actor's loss, `next_eps` (B, Z), or (B, n, Z) with the max-target backup, for the
        target, `cql_cur_eps` and `cql_next_eps` (B, n, Z) for the conservative term.
        """
        one, many = (batch_size, self.action_dim), (batch_size, self.config.num_actions, self.action_dim)
        uniform = torch.rand(many, generator=self.generator, device=self.device, dtype=self.log_alpha().dtype)
        return {
            "pi_eps": self.normal(*one),
            "next_eps": self.normal(*(many if self.config.max_target_backup else one)),
            "cql_cur_eps": self.normal(*many),
            "cql_next_eps": self.normal(*many),
            "rand_actions": 2 * uniform - 1,
        }

    def learn(self, batch: Batch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update of temperature, actor, critics and multiplier, and in the last phase of the targets."""
        config = self.config
        states, actions, rewards, next_states, dones = batch
        mean, log_std = self.actor.gaussian(states)
        chosen, log_pi = squash(mean, log_std, noise["pi_eps"])
        alpha = config.alpha_multiplier * self.log_alpha().exp().detach()  # log alpha stays 0 when it is not tuned
        alpha_loss = -(self.log_alpha() * (log_pi.detach() + self._target_entropy)).mean()
        actor_loss = (alpha * log_pi - self.q_values(states, chosen)).mean()
        with torch.no_grad():
            next_mean, next_log_std = self.actor.gaussian(next_states)
            next_value = self._next_value(next_states, next_mean, next_log_std, alpha, noise["next_eps"])
            target = rewards.flatten() + config.discount * (1 - dones.flatten()) * next_value
            sampled, log_density = self._sample(mean, log_std, next_mean, next_log_std, noise)
            candidates = torch.cat([sampled, actions[:, None]], dim=1)
            pairs = torch.cat([states[:, None].expand(-1, candidates.shape[1], -1), candidates], dim=2)

        if config.automatic_entropy_tuning:
            self.optimizers["alpha"].minimize(alpha_loss)
        self.optimizers["actor"].minimize(actor_loss)
        multiplier = self.log_alpha_prime().exp().clamp(0, LARGEST_ALPHA_PRIME)
        alpha_prime = multiplier.detach() if config.lagrange else torch.ones_like(alpha)
        target_gap = config.target_action_gap if config.lagrange else 0.0
        critic_loss, gap = torch.zeros_like(alpha), torch.zeros_like(alpha)
        for optimizer in (self.optimizers["critic_1"], self.optimizers["critic_2"]):
            with torch.no_grad():
                loss, gap_of_critic, *gradients = conservative_gradients(
                    optimizer.parameters,
                    pairs,
                    log_density if config.importance_sampling else None,
                    target,
                    alpha_prime * config.alpha,
                    config.temperature,
                    config.clip_diff_min,
                    config.clip_diff_max,
                    target_gap,
                )
            optimizer.step(gradients)
            critic_loss, gap = critic_loss + loss, gap + gap_of_critic / 2
        if config.lagrange:
            self.optimizers["alpha_prime"].minimize(-config.alpha * multiplier * (gap - target_gap))
        if phase == config.target_update_period - 1:
            soft_update(self._targets, self._online, config.tau)
        return {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss.detach(),
            "conservative_gap": gap - target_gap,
            "entropy": -log_pi.detach().mean(),
            "alpha_entropy": alpha,
            "alpha_prime": alpha_prime,
        }

    def first_alike(self, phase: int) -> int:
        """Only the last phase moves the targets."""
        return phase if phase == self.period - 1 else 0

    def actions(self, states: Tensor) -> Tensor:
        """The tanh of the mean."""
        return torch.tanh(self.actor.gaussian(states)[0])

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor:
        """The smaller of the two critics."""
        return torch.minimum(self.critic_1(states, actions), self.critic_2(states, actions))

    def next_values(self, next_states: Tensor) -> Tensor:
        """The smaller target critic at the policy's actions."""
        actions = self.actions(next_states)
        return torch.minimum(self.critic_1_target(next_states, actions), self.critic_2_target(next_states, actions))

    def _sample(
        self, mean: Tensor, log_std: Tensor, next_mean: Tensor, next_log_std: Tensor, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """Uniform actions and the policy's at s' and at s, (B, 3n, Z), with their log-densities (B, 3n).

        The actor has run once per state; its n samples differ in their noise alone.
        """
        current, current_log_pi = squash(mean[:, None], log_std[:, None], noise["cql_cur_eps"])
        following, following_log_pi = squash(next_mean[:, None], next_log_std[:, None], noise["cql_next_eps"])
        uniform_log_density = torch.full_like(current_log_pi, self.action_dim * math.log(0.5))
        sampled = torch.cat([noise["rand_actions"], following, current], dim=1)
        return sampled, torch.cat([uniform_log_density, following_log_pi, current_log_pi], dim=1)

    def _next_value(self, next_states: Tensor, mean: Tensor, log_std: Tensor, alpha: Tensor, eps: Tensor) -> Tensor:
        """Value (B,) of the next states under the policy."""
        if self.config.max_target_backup:
            actions, log_pi = squash(mean[:, None], log_std[:, None], eps)
            next_states = next_states[:, None].expand(-1, actions.shape[1], -1)
        else:
            actions, log_pi = squash(mean, log_std, eps)
        values = torch.minimum(self.critic_1_target(next_states, actions), self.critic_2_target(next_states, actions))
        if self.config.max_target_backup:
            values, best = values.max(dim=1)
            log_pi = log_pi.gather(1, best[:, None]).squeeze(1)
        return values - alpha * log_pi if self.config.backup_entropy else values


class Scalar(nn.Module):
    """One trained number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.tensor(value, dtype=torch.get_default_dtype()))

    def forward(self) -> Tensor:
        """The number."""
        return self.constant


class TanhGaussianActor(nn.Module):
    """States (B, H) to mean and log-deviation (B, Z) before the tanh."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.base_network = mlp([state_dim, *hidden_sizes, 2 * action_dim])
        self.log_std_multiplier, self.log_std_offset = Scalar(1.0), Scalar(-1.0)
        initialise(self.base_network, orthogonal=False)

    def gaussian(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-deviation of every state."""
        mean, log_std = self.base_network(states).chunk(2, dim=-1)
        return mean, (self.log_std_multiplier() * log_std + self.log_std_offset()).clamp(*LOG_STD_RANGE)


class CQLCritic(nn.Module):
    """States and actions to values."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.network = mlp([state_dim + action_dim, *hidden_sizes, 1])
        initialise(self.network, orthogonal=True)

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The values (...,) of actions (..., Z) at states (..., H)."""
        return self.network(torch.cat([states, actions], dim=-1)).squeeze(-1)


def initialise(network: nn.Sequential, orthogonal: bool) -> None:
    """First weights as in CORL: small and without biases in the last layer, hidden layers orthogonal or torch's own."""
    *hidden, last = (layer for layer in network if isinstance(layer, nn.Linear))
    if orthogonal:
        for layer in hidden:
            nn.init.orthogonal_(layer.weight, gain=math.sqrt(2))
            nn.init.zeros_(layer.bias)
        nn.init.orthogonal_(last.weight, gain=1e-2)
    else:
        nn.init.xavier_uniform_(last.weight, gain=1e-2)
    nn.init.zeros_(last.bias)
