"""Networks that the algorithms share; layers are named as in the public single-file implementations."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(sizes: Sequence[int], final: nn.Module | None = None) -> nn.Sequential:
    """Linear layers of the given sizes with ReLU between them, and `final` after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    layers.pop()
    return nn.Sequential(*layers, *([final] if final else []))


class DeterministicActor(nn.Module):
    """States (B, H) to actions (B, Z) in [-1, 1]."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp([state_dim, *hidden_sizes, action_dim], final=nn.Tanh())

    def forward(self, states: Tensor) -> Tensor:
        """The action of every state."""
        return self.net(states)


class Critic(nn.Module):
    """States (B, H) and actions (B, Z) to values (B,)."""

    def __init__(self, state_dim: int, action_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp([state_dim + action_dim, *hidden_sizes, 1])

    def forward(self, states: Tensor, actions: Tensor) -> Tensor:
        """The value of every pair."""
        return self.net(torch.cat([states, actions], dim=-1)).squeeze(-1)


class Value(nn.Module):
    """States (B, H) to values (B,)."""

    def __init__(self, state_dim: int, hidden_sizes: Sequence[int]) -> None:
        super().__init__()
        self.net = mlp([state_dim, *hidden_sizes, 1])

    def forward(self, states: Tensor) -> Tensor:
        """The value of every state."""
        return self.net(states).squeeze(-1)
