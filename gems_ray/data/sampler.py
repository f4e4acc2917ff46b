"""Batches from shared, read-only arrays: what every kind of experience has in common."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from gems_ray.data.normalizer import Normalizer, state_statistics
from gems_ray.data.schema import REQUIRED
from gems_ray.device import indexed, room_on
from gems_ray.errors import DatasetError
from gems_ray.flat_state import FlatState
from gems_ray.rng import stream_seed

GPU_SHARE_OF_DATASET = 0.5  # of the free memory, at most
# What torch gathers by row; it knows further unsigned types by name only.
TORCH_TYPES = {"bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"}

B = TypeVar("B")


class Sampler(ABC, Generic[B]):
    """Batches of rows drawn uniformly from one dataset; a subclass makes them of row numbers.

    The arrays stay where they are: neither normalisation nor sampling copies them whole, so that many trials can share
    one copy in the object store. On a GPU they are moved there once if they fit, and gathered on the host if not.

    Args:
        state_dim: H.
        action_dim: Z.
        buffer_size: largest number of transitions.
        device: where batches are made.
        seed: seed of the `batch` stream.
        normalize_states: whether states are normalised by their mean and standard deviation.
        action_center: (Z,) float32, middle of the action box; None leaves actions as they are.
        action_scale: (Z,) float32, half the width of the action box.
        reward_scale: `none`, a factor, or `std` to divide by the standard deviation.
    """

    def __init__(
        self,
        state_dim: int,
        action_dim: int,
        buffer_size: int,
        device: str | torch.device = "cpu",
        *,
        seed: int = 0,
        normalize_states: bool = False,
        action_center: np.ndarray | None = None,
        action_scale: np.ndarray | None = None,
        reward_scale: str | float = "none",
    ) -> None:
        self.device = indexed(device)
        self._shapes = {"observations": (state_dim,), "actions": (action_dim,), "next_observations": (state_dim,)}
        self._buffer_size = buffer_size
        self._normalize_states = normalize_states
        self._reward_scale = reward_scale
        center = np.zeros(action_dim, dtype=np.float32) if action_center is None else action_center
        scale = np.ones(action_dim, dtype=np.float32) if action_scale is None else action_scale
        identity = (np.zeros(state_dim, dtype=np.float32), np.ones(state_dim, dtype=np.float32))
        self._set_normalizer(*identity, center, scale)
        self.reward_factor = 1.0
        self._columns: dict[str, Tensor] = {}
        self.on_device = True  # whether the transitions lie where the batches are made
        self._kept: Tensor | None = None
        # Row numbers come from the CPU's generator on every device: the same batches everywhere.
        self._generator = torch.Generator().manual_seed(stream_seed(seed, "batch"))

    @property
    def steps_per_row(self) -> int:
        """Steps of an episode that a row of a batch holds."""
        return 1

    def __len__(self) -> int:
        return len(self._columns["rewards"]) if self._columns else 0

    def load_d4rl_dataset(self, data: Mapping[str, np.ndarray], rows: np.ndarray | None = None) -> None:
        """Takes the transitions of a dataset, by reference where the memory is the host's.

        Args:
            data: `observations` (N, H), `actions` (N, Z), `rewards` (N,), `next_observations` (N, H) and `terminals`
                (N,) of any numeric type, `timeouts` (N,) where the dataset has them; other entries are ignored.
            rows: (n,) int64, the only rows that are sampled and counted in statistics; None for all.
        Raises:
            DatasetError: an array is missing or of the wrong shape, there are more transitions than the buffer takes,
                or the buffer has some already.
        """
        if self._columns:
            raise DatasetError("load_d4rl_dataset: the buffer holds a dataset already. Make another buffer.")
        if missing := [name for name in REQUIRED if name not in data]:
            raise DatasetError(f"load_d4rl_dataset: `{missing[0]}` is missing. Found {', '.join(data) or 'nothing'}.")
        size = len(data["rewards"])
        for name in REQUIRED:
            expected = (size, *self._shapes.get(name, ()))
            if data[name].shape not in (expected, (*expected, 1)):
                raise DatasetError(f"load_d4rl_dataset: `{name}`: expected {expected}, found {data[name].shape}.")
            if data[name].dtype.kind not in "biuf":
                raise DatasetError(f"load_d4rl_dataset: `{name}`: expected numbers, found {data[name].dtype}.")
        if not 0 < size <= self._buffer_size:
            raise DatasetError(f"load_d4rl_dataset: {size} transitions, the buffer takes 1 to {self._buffer_size}.")
        columns = {name: _shared(data[name].reshape(size, *self._shapes.get(name, ()))) for name in REQUIRED}
        columns |= self._derived(data)
        self._place(columns)
        self._kept = None if rows is None else torch.from_numpy(rows)
        if self._normalize_states:
            mean, std = state_statistics(data["observations"].reshape(size, *self._shapes["observations"]), rows)
            self._set_normalizer(mean, std, self.normalizer.action_center, self.normalizer.action_scale)
        if self._reward_scale == "std":
            rewards = data["rewards"] if rows is None else data["rewards"][rows]
            deviation = float(rewards.std(dtype=np.float64))
            self.reward_factor = 1 / deviation if deviation > 0 else 1.0
        elif self._reward_scale != "none":
            self.reward_factor = float(self._reward_scale)

    def _derived(self, data: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Further columns (N, ...) that batches are made of."""
        return {}

    def sample(self, batch_size: int) -> B:
        """A batch drawn with replacement."""
        return self.rows(self.draw(batch_size))

    def draw(self, batch_size: int) -> Tensor:
        """The row numbers (B,) int64 of the next batch, where the transitions lie."""
        rows = self.draw_on_host(batch_size)
        return self._moved(rows) if self.on_device else rows

    def draw_on_host(self, batch_size: int) -> Tensor:
        """The row numbers (B,) int64 of the next batch, on the CPU."""
        count = len(self) if self._kept is None else len(self._kept)
        drawn = torch.randint(count, (batch_size,), generator=self._generator)
        return drawn if self._kept is None else self._kept[drawn]

    def rows(self, rows: Tensor) -> B:
        """The batch of the given row numbers (B,) int64."""
        if self.on_device:
            return self.assemble(self.gather(rows))
        return self.assemble({name: self._moved(column) for name, column in self.gather(rows.cpu()).items()})

    @abstractmethod
    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """What a batch is made of, as it was logged, by row number (B,) int64: where the transitions lie."""

    @abstractmethod
    def assemble(self, columns: Mapping[str, Tensor]) -> B:
        """The batch of what `gather` returned, on the device."""

    def state_dict(self) -> FlatState:
        """Random state and normaliser."""
        normalizer = {name: value.cpu().clone() for name, value in self.normalizer._asdict().items()}
        return {"generator": self._generator.get_state(), **normalizer}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken."""
        for name, value in self.normalizer._asdict().items():
            value.copy_(state[name])  # in place: compiled code holds on to these tensors
        self._generator.set_state(state["generator"])

    def _moved(self, values: Tensor) -> Tensor:
        """Host values on the device; the host does not wait for it."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def _place(self, columns: dict[str, Tensor]) -> None:
        """Takes the transitions to the device, or leaves them on the host where they do not fit."""
        self.on_device, self._columns = False, columns
        if self._fits(columns):
            try:
                self._columns, self.on_device = self._copied(columns), True
            except torch.OutOfMemoryError:  # another process was quicker: gathered on the host
                torch.cuda.empty_cache()

    def _copied(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: column.to(self.device) for name, column in columns.items()}

    def _fits(self, columns: Mapping[str, Tensor]) -> bool:
        if self.device.type != "cuda":
            return True
        return sum(column.nbytes for column in columns.values()) <= GPU_SHARE_OF_DATASET * room_on(self.device)

    def _set_normalizer(self, *values: np.ndarray | Tensor) -> None:
        fixed = (torch.as_tensor(value).to(self.device, torch.float32, copy=True) for value in values)
        self.normalizer = Normalizer(*fixed)


def _shared(array: np.ndarray) -> Tensor:
    """A tensor over the array's own memory, which is only read; a float32 copy where torch has no such type."""
    if array.dtype.name not in TORCH_TYPES or not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        array = np.ascontiguousarray(array, dtype=np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
