"""One source of random numbers for each user."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class PerUser:
    """Draws for many users, each from a generator of its own: what a user does never depends on the other users.

    Args:
        generators: one of NumPy's for each of U users; they are used, not copied.
    """

    def __init__(self, generators: Sequence[np.random.Generator]) -> None:
        self._generators = tuple(generators)

    def random(self, size: tuple[int, ...], dtype: Any = np.float64) -> np.ndarray:
        """Numbers (U, ...) from [0, 1)."""
        return np.stack([generator.random(size[1:], dtype=dtype) for generator in self._rows(size)])

    def standard_normal(self, size: tuple[int, ...]) -> np.ndarray:
        """Numbers (U, ...) float64 of the standard normal distribution."""
        return np.stack([generator.standard_normal(size[1:]) for generator in self._rows(size)])

    def _rows(self, size: tuple[int, ...]) -> tuple[np.random.Generator, ...]:
        assert size[0] == len(self._generators), "one generator for each user"
        return self._generators


Draws = np.random.Generator | PerUser
