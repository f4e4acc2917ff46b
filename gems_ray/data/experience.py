"""Experience: what an algorithm learns from, single transitions or windows of an episode."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B transitions in normalised units.

    Args:
        states: (B, H) float.
        actions: (B, Z) float, in [-1, 1].
        rewards: (B, 1) float.
        next_states: (B, H) float.
        dones: (B, 1) float, 0 or 1.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    dones: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "Batch":
        """The batch on a device, in a floating-point type; columns may be arrays of any type."""
        return Batch(*(torch.as_tensor(column).to(device, dtype) for column in self))


class WindowBatch(NamedTuple):
    """B windows of L consecutive steps of an episode, in normalised units; zeros after the episode's end.

    Args:
        states: (B, L, H) float.
        actions: (B, L, Z) float, in [-1, 1].
        rewards: (B, L) float.
        returns_to_go: (B, L) float, sum of the rewards from this step to the end of the episode.
        time_steps: (B, L) int64, number of the step in its episode, from 0; it goes on after the end.
        mask: (B, L) bool, false after the end of the episode.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    returns_to_go: Tensor
    time_steps: Tensor
    mask: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "WindowBatch":
        """The batch on a device, its numbers in a floating-point type; columns may be arrays of any type."""
        types = (dtype, dtype, dtype, dtype, torch.int64, torch.bool)
        return WindowBatch(*(torch.as_tensor(c).to(device, kind) for c, kind in zip(self, types, strict=True)))


@dataclass(frozen=True, slots=True)
class Transitions:
    """Single transitions, drawn uniformly: batches are `Batch`."""

    batch_type = Batch


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows that begin at a step drawn uniformly from all steps of the dataset: batches are `WindowBatch`.

    Args:
        length: L, steps of a window.
    """

    length: int

    batch_type = WindowBatch


Experience = Transitions | Windows
