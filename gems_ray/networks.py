"""Networks that several rooms share; layers are named as in the public single-file implementations."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOG_STD_RANGE = (-20.0, 2.0)  # of Gaussian policies, in the public implementations


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


def squash(mean: Tensor, log_std: Tensor, noise: Tensor, smallest_slope: float | None = None) -> tuple[Tensor, Tensor]:
    """Sample and log-density of a Gaussian pushed through tanh.

    Args:
        mean, log_std: (..., Z); they are broadcast to the noise.
        noise: (..., Z) standard normal.
        smallest_slope: added to the tanh's slope before its logarithm, as some public programs do; None takes the exact
            logarithm, in the form that is stable for large actions.
    Returns:
        actions (..., Z) in [-1, 1], log-densities without the last dimension.
    Source: Haarnoja et al. (2018), appendix C.
    """
    before_tanh = mean + log_std.exp() * noise
    log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    actions = torch.tanh(before_tanh)
    if smallest_slope is None:
        log_slope = 2 * (math.log(2) - before_tanh - F.softplus(-2 * before_tanh))
    else:
        log_slope = torch.log(1 - actions.square() + smallest_slope)
    return actions, (log_normal - log_slope).sum(dim=-1)
