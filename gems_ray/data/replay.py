"""Batches of transitions."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gems_ray.data.experience import Batch
from gems_ray.data.sampler import Sampler


class ReplayBuffer(Sampler[Batch]):
    """Transitions drawn uniformly.

    Code written for CORL's buffer runs on this one: construct it with four arguments, `load_d4rl_dataset`, `sample`.
    Without further options batches hold the dataset's own units.

    Args:
        arguments: those of `Sampler`.
        bootstrap_time_limit: whether `dones` are 0 at the end of an episode too.
        options: those of `Sampler`.
    """

    def __init__(self, *arguments: Any, bootstrap_time_limit: bool = False, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._bootstrap = bootstrap_time_limit

    def gather(self, rows: Tensor) -> dict[str, Tensor]:
        """The transitions of the given row numbers (B,) int64, as they were logged."""
        return {name: values.index_select(0, rows) for name, values in self._columns.items()}

    def assemble(self, columns: Mapping[str, Tensor]) -> Batch:
        """The transitions that were gathered, in the units of training."""
        column = {name: values.to(torch.float32) for name, values in columns.items()}
        rewards = column["rewards"].unsqueeze(1)
        dones = column["terminals"].unsqueeze(1)
        return Batch(
            self.normalizer.states(column["observations"]),
            self.normalizer.actions(column["actions"]),
            rewards if self.reward_factor == 1 else rewards * self.reward_factor,
            self.normalizer.states(column["next_observations"]),
            torch.zeros_like(dones) if self._bootstrap else dones,
        )
