"""Sampling of batches from shared, read-only transitions."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gems_ray.flat_state import FlatState
from gems_ray.rng import stream_seed

BLOCK_BATCHES = 64  # batches whose row numbers are drawn at once
STD_OFFSET = 1e-3  # keeps constant state dimensions finite, as in the public implementations
STATISTICS_ROWS = 65_536  # rows per partial sum, so that statistics need no copy of the data


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


class ReplayBuffer:
    """Uniform batches from one dataset.

    The arrays stay where they are: neither normalisation nor sampling copies them whole, so that many trials can share
    one copy in the object store.

    Args:
        arrays: `observations`, `actions`, `rewards`, `next_observations`, `terminals` as in the dataset format.
        action_center: (Z,) float32, middle of the action box.
        action_scale: (Z,) float32, half its width.
        normalize_states: whether states are normalised by their mean and standard deviation.
        seed: seed of the `batch` stream.
        device: where batches are made.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        action_center: np.ndarray,
        action_scale: np.ndarray,
        *,
        normalize_states: bool = True,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = torch.device(device)
        names = ("observations", "actions", "rewards", "next_observations", "terminals")
        self._columns = {name: _shared(arrays[name]).to(self.device) for name in names}
        mean, std = state_statistics(arrays["observations"])
        if not normalize_states:
            mean, std = np.zeros_like(mean), np.ones_like(std)
        fixed = (mean, std, action_center, action_scale)
        self.normalizer = Normalizer(*(torch.as_tensor(np.array(a), device=self.device) for a in fixed))
        self._generator = torch.Generator(self.device).manual_seed(stream_seed(seed, "batch"))
        self._block_start = self._generator.get_state()
        self._block = torch.empty((0, 0), dtype=torch.int64)
        self._position = 0

    def __len__(self) -> int:
        return len(self._columns["rewards"])

    def sample(self, batch_size: int) -> Batch:
        """A batch of transitions drawn with replacement."""
        if self._block.shape[1:] != (batch_size,) or self._position == len(self._block):
            self._draw_block(batch_size)
        rows = self._block[self._position]
        self._position += 1
        return self.rows(rows)

    def rows(self, rows: Tensor) -> Batch:
        """The transitions of the given row numbers (B,) int64."""
        column = {name: values.index_select(0, rows) for name, values in self._columns.items()}
        return Batch(
            self.normalizer.states(column["observations"]),
            self.normalizer.actions(column["actions"]),
            column["rewards"].unsqueeze(1),
            self.normalizer.states(column["next_observations"]),
            column["terminals"].unsqueeze(1).to(torch.float32),
        )

    def state_dict(self) -> FlatState:
        """Random state, position in the block of row numbers, and normaliser."""
        return {
            "block_start": self._block_start.clone(),
            "block_position": torch.tensor([self._position, self._block.shape[1]]),
            **{name: value.cpu().clone() for name, value in self.normalizer._asdict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken."""
        self.normalizer = Normalizer(*(state[name].to(self.device) for name in Normalizer._fields))
        self._generator.set_state(state["block_start"])
        position, batch_size = state["block_position"].tolist()
        self._block, self._position = torch.empty((0, 0), dtype=torch.int64), 0
        if batch_size:
            self._draw_block(batch_size)
            self._position = position

    def _draw_block(self, batch_size: int) -> None:
        self._block_start = self._generator.get_state()
        shape = (BLOCK_BATCHES, batch_size)
        self._block = torch.randint(len(self), shape, generator=self._generator, device=self.device)
        self._position = 0


def state_statistics(observations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation + 1e-3 of states (N, H): two (H,) float32."""
    blocks = [observations[i : i + STATISTICS_ROWS] for i in range(0, len(observations), STATISTICS_ROWS)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(observations)
    variance = sum(np.square(block - mean).sum(axis=0) for block in blocks) / len(observations)
    return np.asarray(mean, dtype=np.float32), (np.sqrt(variance) + STD_OFFSET).astype(np.float32)


def _shared(array: np.ndarray) -> Tensor:
    """A tensor over the array's own memory; the replay only reads it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
