"""Units of training: states of zero mean and unit deviation, actions in [-1, 1]."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

STD_OFFSET = 1e-3  # keeps constant state dimensions finite, as in the public implementations
STATISTICS_ROWS = 65_536  # rows per partial sum, so that statistics need no copy of the data


class Normalizer(NamedTuple):
    """States to zero mean and unit deviation, latent actions to [-1, 1]; each (H,) or (Z,) float32."""

    state_mean: Tensor
    state_std: Tensor
    action_center: Tensor
    action_scale: Tensor

    def states(self, observations: Tensor) -> Tensor:
        """Beliefs (..., H) to normalised states."""
        return (observations - self.state_mean) / self.state_std

    def actions(self, latents: Tensor) -> Tensor:
        """Latents (..., Z) to normalised actions."""
        return (latents - self.action_center) / self.action_scale

    def latents(self, actions: Tensor) -> Tensor:
        """Normalised actions (..., Z) to latents."""
        return self.action_center + self.action_scale * actions


def state_statistics(observations: np.ndarray, rows: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation + 1e-3 of states: two (H,) float32.

    Args:
        observations: (N, H) float.
        rows: (n,) int64, the only rows that count; None for all.
    """
    count = len(observations) if rows is None else len(rows)
    slices = [slice(start, start + STATISTICS_ROWS) for start in range(0, count, STATISTICS_ROWS)]

    def blocks() -> Iterator[np.ndarray]:
        for part in slices:
            yield observations[part] if rows is None else observations[rows[part]]

    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks()) / count
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks()) / count
    return np.asarray(mean, dtype=np.float32), (np.sqrt(variance) + STD_OFFSET).astype(np.float32)
