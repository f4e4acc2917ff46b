"""Decision Transformer: which action follows a state, if the episode is to have a wanted return (Chen et al. 2021)."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import OF_SAMPLER, Algorithm, AlgorithmConfig, Noise, RewardScale
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.config import blame
from gems_ray.data.experience import WindowBatch, Windows
from gems_ray.data.normalizer import Normalizer
from gems_ray.data.trajectories import returns_to_go, trajectory_ends
from gems_ray.errors import Mistake
from gems_ray.policies.base import Observations

BEST_SHARE = 0.1  # of the episodes, whose mean return is asked for where `target_return` is not set
INITIAL_STD = 0.02  # of linear layers and embeddings (GPT-2)


class DecisionTransformerConfig(AlgorithmConfig):
    """Settings of the Decision Transformer; defaults from CORL unless said otherwise."""

    batch_size: int = Field(64, ge=1, le=1_000_000, description="Windows per update.")
    sequence_length: int = Field(20, ge=1, le=1_000, description="Steps of a window, in training and acting.")
    embedding_dim: int = Field(128, ge=1, le=10_000, description="Width of every token.")
    num_layers: int = Field(3, ge=1, le=100, description="Transformer blocks.")
    num_heads: int = Field(1, ge=1, le=100, description="Attention heads; a divisor of embedding_dim.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of embeddings, attention and residuals left out.")
    learning_rate: float = Field(1e-4, gt=0, description="AdamW's step size after the warm-up.")
    warm_up_steps: int = Field(
        1_000, ge=0, description="Updates over which the step size rises; CORL: 10,000 of 100,000 updates."
    )
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's shrinking of the weights.")
    largest_gradient_norm: float = Field(0.25, gt=0, description="Gradients of a larger norm are scaled down to it.")
    reward_scale: RewardScale = Field(
        0.01, description="Factor of rewards and returns, so that returns-to-go of some hundred clicks are of size 1."
    )
    target_return: float | None = Field(
        None, description="Clicks per episode that are asked for; if not set, the mean of the data's best tenth."
    )
    episode_length: int = Field(100, ge=1, le=100_000, description="Steps whose number has an embedding of its own.")

    @model_validator(mode="after")
    def _heads_divide_the_embedding(self) -> "DecisionTransformerConfig":
        if self.embedding_dim % self.num_heads:
            expected = f"expected a divisor of embedding_dim, {self.embedding_dim}"
            raise blame(Mistake(("num_heads",), expected=expected, found=f"{self.num_heads}"))
        return self


class DecisionTransformer(Algorithm[DecisionTransformerConfig]):
    """Chen et al. (2021), algorithm 1: squared error of the actions that follow return-to-go and state."""

    name = "decision_transformer"
    Config = DecisionTransformerConfig
    loss_names = ("actor_loss",)
    per_cell = (
        "learning_rate",
        "warm_up_steps",
        "weight_decay",
        "largest_gradient_norm",
        "target_return",
        "discount",
        *OF_SAMPLER,
    )

    def build(self) -> None:
        """Creates the transformer."""
        config = self.config
        self.experience = Windows(config.sequence_length)
        self.evaluations_per_row = config.sequence_length
        self.transformer = Transformer(self.state_dim, self.action_dim, config).to(self.device)
        self.networks = {"transformer": self.transformer}
        optimizer = Adam(
            self.transformer.parameters(),
            config.learning_rate,
            warm_up_steps=config.warm_up_steps,
            weight_decay=config.weight_decay,
            largest_norm=config.largest_gradient_norm,
        )
        self.optimizers = {"transformer": optimizer}

    def prepare(self, rewards: np.ndarray, last: np.ndarray, reward_factor: float) -> None:
        """Remembers the factor of the rewards, and what the best episodes returned."""
        ends = trajectory_ends(last)
        returns = returns_to_go(rewards, ends, 1.0)[np.append(0, ends[:-1] + 1)]
        best = np.sort(returns)[-max(1, int(BEST_SHARE * len(returns))) :]
        self.transformer.reward_factor.fill_(reward_factor)
        self.transformer.best_return.fill_(float(best.mean()))

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        """What dropout keeps, scaled: 0 or 1 / (1 - dropout); nothing where dropout is 0.

        `embedding` and, by block, `attention_out_<i>` and `mlp_<i>` (B, 3 L, E), `attention_<i>` (B, heads, 3 L, 3 L).
        """
        config = self.config
        if not config.dropout:
            return {}
        tokens = 3 * config.sequence_length
        of_tokens = (batch_size, tokens, config.embedding_dim)
        shapes: dict[str, tuple[int, ...]] = {"embedding": of_tokens}
        for block in range(config.num_layers):
            shapes[f"attention_{block}"] = (batch_size, config.num_heads, tokens, tokens)
            shapes |= {f"attention_out_{block}": of_tokens, f"mlp_{block}": of_tokens}
        return {name: self._kept(*shape) for name, shape in shapes.items()}

    def learn(self, batch: WindowBatch, noise: Noise, phase: int) -> dict[str, Tensor]:
        """One update."""
        errors = (self.transformer(batch, noise) - batch.actions).square()
        loss = (errors * batch.mask[..., None]).mean()  # what was filled up counts in the mean, as published
        self.optimizers["transformer"].minimize(loss)
        return {"actor_loss": loss.detach()}

    def predict(self, batch: WindowBatch) -> Tensor:
        """The next action (B, L, Z) after every state of the windows."""
        return self.transformer(batch, {})

    def policy(self, normalizer: Normalizer) -> "DecisionTransformerPolicy":
        """The transformer, asked for a return."""
        return DecisionTransformerPolicy(self, normalizer)

    def _kept(self, *shape: int) -> Tensor:
        keep = 1 - self.config.dropout
        uniform = torch.rand(shape, generator=self.generator, device=self.device, dtype=self._dtype())
        return (uniform < keep) / keep


class Memory(NamedTuple):
    """The last steps of U users, L at most, in normalised units.

    Args:
        states: (U, n, H) float.
        actions: (U, n, Z) float.
        returns_to_go: (U, n) float, what was asked for in each step.
        steps: (U,) int64, steps of the episode so far.
    """

    states: Tensor
    actions: Tensor
    returns_to_go: Tensor
    steps: Tensor


class DecisionTransformerPolicy(LearnedPolicy[DecisionTransformer]):
    """Acts as if the episode were to return `target_return` clicks, less those that were received so far.

    All users are decoded together; a window of their last L steps is read anew in every step.
    """

    def __init__(self, algorithm: DecisionTransformer, normalizer: Normalizer) -> None:
        super().__init__(algorithm, normalizer)
        self._target_return = algorithm.config.target_return

    @property
    def target_return(self) -> float:
        """Clicks per episode that are asked for; can be set at any time, for the episodes that begin after it."""
        return float(self.algorithm.transformer.best_return) if self._target_return is None else self._target_return

    @target_return.setter
    def target_return(self, clicks: float) -> None:
        self._target_return = float(clicks)

    def settings(self) -> dict[str, Any]:
        """The return that is asked for."""
        return {"target_return": self.target_return}

    def initial_state(self, users: int) -> Memory:
        """Nothing seen yet."""
        algorithm = self.algorithm
        nothing = algorithm.transformer.reward_factor.new_zeros(users, 0)
        return Memory(
            nothing[..., None].expand(-1, -1, algorithm.state_dim),
            nothing[..., None].expand(-1, -1, algorithm.action_dim),
            nothing,
            torch.zeros(users, dtype=torch.int64, device=nothing.device),
        )

    @torch.no_grad()
    def act(self, observations: Observations, state: Memory, rewards: Observations | None) -> tuple[Tensor, Memory]:
        """Latents (U, Z) for beliefs (U, H), after what the memory holds."""
        known = state.returns_to_go
        states = self.normalizer.states(torch.as_tensor(observations).to(known))
        factor = self.algorithm.transformer.reward_factor
        if rewards is None:
            wanted = torch.full_like(states[:, 0], self.target_return) * factor
        else:
            wanted = known[:, -1] - torch.as_tensor(rewards).to(known) * factor
        seen = max(0, known.shape[1] + 1 - self.algorithm.config.sequence_length)  # steps that leave the window
        memory = Memory(
            torch.cat([state.states[:, seen:], states[:, None]], dim=1),
            F.pad(state.actions[:, seen:], (0, 0, 0, 1)),  # the action that is looked for
            torch.cat([known[:, seen:], wanted[:, None]], dim=1),
            state.steps + 1,
        )
        actions = self.algorithm.transformer.next_actions(memory)
        memory.actions[:, -1] = actions
        return self.normalizer.latents(actions), memory

    def replace_actions(self, state: Memory, actions: Tensor) -> Memory:
        """The memory with the latents that were played in the last step."""
        played = state.actions.clone()
        played[:, -1] = self.normalizer.actions(actions.to(played))
        return state._replace(actions=played)


class Transformer(nn.Module):
    """Reads returns-to-go, states and actions step by step, and says which action follows every state.

    Parameters are named and initialised as in CORL.
    """

    reward_factor: Tensor
    best_return: Tensor

    def __init__(self, state_dim: int, action_dim: int, config: DecisionTransformerConfig) -> None:
        super().__init__()
        width = config.embedding_dim
        self.emb_norm, self.out_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.timestep_emb = nn.Embedding(config.episode_length + config.sequence_length, width)
        self.state_emb, self.action_emb = nn.Linear(state_dim, width), nn.Linear(action_dim, width)
        self.return_emb = nn.Linear(1, width)
        self.blocks = nn.ModuleList(Block(width, config.num_heads) for _ in range(config.num_layers))
        self.action_head = nn.Sequential(nn.Linear(width, action_dim), nn.Tanh())
        self.apply(_initialise)
        self.register_buffer("reward_factor", torch.ones(()))  # clicks to the units of returns-to-go
        self.register_buffer("best_return", torch.zeros(()))  # clicks, of the best episodes of the data

    def forward(self, batch: WindowBatch, noise: Noise) -> Tensor:
        """The action (B, L, Z) after every state; `noise` is what dropout keeps."""
        tokens = self._tokens(batch.returns_to_go, batch.states, batch.actions, batch.time_steps)
        tokens = tokens * noise.get("embedding", 1.0)
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, *(noise.get(f"{name}_{index}") for name in ("attention", "attention_out", "mlp")))
        return self.action_head(self.out_norm(tokens[:, 1::3]))

    def next_actions(self, memory: Memory) -> Tensor:
        """The action (U, Z) after the last state."""
        length = memory.states.shape[1]
        steps = memory.steps[:, None] + torch.arange(-length, 0, device=memory.steps.device)
        tokens = self._tokens(memory.returns_to_go, memory.states, memory.actions, steps)
        tokens = tokens[:, :-1]  # without the action that is looked for
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        return self.action_head(self.out_norm(last.of_last_token(tokens)))

    def _tokens(self, returns_to_go: Tensor, states: Tensor, actions: Tensor, time_steps: Tensor) -> Tensor:
        """Return-to-go, state and action of every step, one after the other: (B, 3 L, E)."""
        time = self.timestep_emb(time_steps.clamp(max=self.timestep_emb.num_embeddings - 1))
        parts = self.return_emb(returns_to_go[..., None]), self.state_emb(states), self.action_emb(actions)
        return self.emb_norm(torch.stack([part + time for part in parts], dim=2).flatten(1, 2))


class Block(nn.Module):
    """A transformer block with the layer norms first."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CausalAttention(width, num_heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self,
        tokens: Tensor,
        kept_attention: Tensor | None = None,
        kept_attention_out: Tensor | None = None,
        kept_mlp: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, T, E) to tokens (B, T, E); the rest is what dropout keeps, None for everything."""
        tokens = tokens + _keep(self.attention(self.norm1(tokens), kept_attention), kept_attention_out)
        return tokens + _keep(self.mlp(self.norm2(tokens)), kept_mlp)

    def of_last_token(self, tokens: Tensor) -> Tensor:
        """What becomes of the last token (B, E), without computing the others."""
        last = tokens[:, -1] + self.attention.of_last_token(self.norm1(tokens))
        return last + self.mlp(self.norm2(last))


class CausalAttention(nn.Module):
    """Multi-head attention to a token and those before it; parameters as in torch's own module."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self._num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, tokens: Tensor, kept: Tensor | None) -> Tensor:
        """Tokens (B, T, E) to tokens (B, T, E); `kept` (B, heads, T, T) is what dropout leaves of the weights."""
        query, key, value = self._heads(F.linear(tokens, self.in_proj_weight, self.in_proj_bias), 3)
        if kept is None:
            return self._joined(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).triu(1)
        weights = scores.masked_fill(future, -torch.inf).softmax(dim=3)
        return self._joined((weights * kept) @ value)

    def of_last_token(self, tokens: Tensor) -> Tensor:
        """The same for the last token alone: (B, T, E) to (B, E)."""
        width = tokens.shape[2]
        of_query, of_rest = self.in_proj_weight.split([width, 2 * width])
        query_bias, rest_bias = self.in_proj_bias.split([width, 2 * width])
        (query,) = self._heads(F.linear(tokens[:, -1:], of_query, query_bias), 1)
        key, value = self._heads(F.linear(tokens, of_rest, rest_bias), 2)
        return self._joined(F.scaled_dot_product_attention(query, key, value))[:, 0]

    def _heads(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * E) to that many tensors (B, heads, T, E / heads)."""
        batch, length, _ = projected.shape
        return projected.view(batch, length, parts, self._num_heads, -1).transpose(1, 3).unbind(dim=2)

    def _joined(self, heads: Tensor) -> Tensor:
        """(B, heads, T, E / heads) to tokens (B, T, E)."""
        return self.out_proj(heads.transpose(1, 2).flatten(2))


def _keep(values: Tensor, kept: Tensor | None) -> Tensor:
    return values if kept is None else values * kept


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INITIAL_STD)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
