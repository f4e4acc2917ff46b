"""Batches of windows: consecutive steps of an episode, for algorithms that read sequences."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gems_ray.data.experience import WindowBatch
from gems_ray.data.sampler import Sampler
from gems_ray.data.trajectories import last_steps, returns_to_go, trajectory_ends

WINDOWED = ("observations", "actions", "rewards", "returns_to_go")


class WindowBuffer(Sampler[WindowBatch]):
    """Windows of L steps that begin at rows drawn uniformly.

    Long episodes are drawn more often than short ones, and every one of their steps equally often as a beginning (Chen
    et al. 2021). A window that passes the end of its episode is filled with zeros.

    Args:
        arguments: those of `Sampler`.
        length: L.
        options: those of `Sampler`.
    """

    def __init__(self, *arguments: Any, length: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._steps_on_host = torch.arange(length)
        self._steps = self._steps_on_host.to(self.device)

    @property
    def steps_per_row(self) -> int:
        """L."""
        return len(self._steps)

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """The windows that begin at the given row numbers (B,) int64, as they were logged."""
        first, last = (self._columns[name].index_select(0, rows).long()[:, None] for name in ("first", "last"))
        steps = rows[:, None] + (self._steps if self.on_device else self._steps_on_host)  # (B, L)
        inside = torch.minimum(steps, last).flatten()
        windows = {name: self._columns[name].index_select(0, inside) for name in WINDOWED}
        return {"first": first, "last": last, "steps": steps, **windows}

    def assemble(self, columns: Mapping[str, Tensor]) -> WindowBatch:
        """The windows that were gathered, in the units of training."""
        steps, first = columns["steps"], columns["first"]
        mask = steps <= columns["last"]

        def window(name: str) -> Tensor:
            values = columns[name].to(torch.float32)
            return values.view(*mask.shape, *values.shape[1:])

        real = mask.to(torch.float32)
        return WindowBatch(
            self.normalizer.states(window("observations")) * real[..., None],
            self.normalizer.actions(window("actions")) * real[..., None],
            window("rewards") * self.reward_factor * real,
            window("returns_to_go") * self.reward_factor * real,
            steps - first,
            mask,
        )

    def _derived(self, data: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """First and last row of every row's episode, and the return from the row on."""
        flags = {name: np.ravel(data[name]) for name in ("terminals", "timeouts") if name in data}
        ends = trajectory_ends(last_steps(flags))
        lengths = np.diff(ends, prepend=-1)
        of_rows = {
            "first": np.repeat(ends - lengths + 1, lengths).astype(np.int32),
            "last": np.repeat(ends, lengths).astype(np.int32),
            "returns_to_go": returns_to_go(np.ravel(data["rewards"]), ends, 1.0).astype(np.float32),
        }
        return {name: torch.from_numpy(values) for name, values in of_rows.items()}
