"""Losses between two reports."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from gems_ray.algorithms.base import AnyAlgorithm
from gems_ray.flat_state import FlatState


class LossMeans:
    """Means of an algorithm's losses since the last report; they stay on the device until then."""

    def __init__(self, algorithm: AnyAlgorithm) -> None:
        zero = torch.zeros((), dtype=torch.float64, device=algorithm.device)
        self._sums = {name: zero.clone() for name in algorithm.loss_names}
        self._counts = dict.fromkeys(algorithm.loss_names, 0)

    @property
    def sums(self) -> dict[str, Tensor]:
        """The sums by name, scalars on the device."""
        return self._sums

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Adds the losses of one update on the device; `count` must hear of them too."""
        for name, value in losses.items():
            self._sums[name].add_(value)

    def count(self, names: Iterable[str]) -> None:
        """Counts the losses of one update."""
        for name in names:
            self._counts[name] += 1

    def take(self) -> dict[str, float | None]:
        """The means, None where there was no loss; begins anew."""
        means = {name: float(self._sums[name]) / count if count else None for name, count in self._counts.items()}
        for name in self._sums:
            self._sums[name].zero_()
            self._counts[name] = 0
        return means

    def state_dict(self) -> FlatState:
        """Sums and counts."""
        return {
            name: torch.stack([total.cpu(), torch.tensor(self._counts[name], dtype=torch.float64)])
            for name, total in self._sums.items()
        }

    def load_state_dict(self, state: FlatState) -> None:
        """Fills sums and counts from `state_dict`."""
        for name, pair in state.items():
            self._sums[name].copy_(pair[0])
            self._counts[name] = int(pair[1])
