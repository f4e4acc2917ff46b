"""Batches of transitions."""

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

    def rows(self, rows: Tensor) -> Batch:
        """The transitions of the given row numbers (B,) int64."""
        column = {name: self._gather(values, rows).to(torch.float32) for name, values in self._columns.items()}
        rewards = column["rewards"].unsqueeze(1)
        dones = column["terminals"].unsqueeze(1)
        return Batch(
            self.normalizer.states(column["observations"]),
            self.normalizer.actions(column["actions"]),
            rewards if self.reward_factor == 1 else rewards * self.reward_factor,
            self.normalizer.states(column["next_observations"]),
            torch.zeros_like(dones) if self._bootstrap else dones,
        )
