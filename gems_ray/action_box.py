"""The box of latent actions, between the units of the decoder and [-1, 1]."""

from typing import NamedTuple

import numpy as np

RANDOM_SHARE = 0.5  # of the box that random latents fill
SMALLEST_SCALE, LARGEST_SIDE = 1e-6, 1e6  # latent units


class ActionBox(NamedTuple):
    """Latents `center + scale * a` for actions a in [-1, 1]; both (Z,) float32, in latent units."""

    center: np.ndarray
    scale: np.ndarray

    def check(self) -> None:
        """Makes sure that it is a box.

        Raises:
            ValueError: a number is not finite, or too small or too large.
        """
        for name, side, smallest in (("center", self.center, -LARGEST_SIDE), ("scale", self.scale, SMALLEST_SCALE)):
            values = side.astype(np.float64)  # as the metadata compares them: 1e-6 in float32 is a little less
            wrong = values[~((values >= smallest) & (values <= LARGEST_SIDE))]
            if len(wrong):
                raise ValueError(
                    f"`{name}`: expected numbers from {smallest:g} to {LARGEST_SIDE:g}, found {wrong[0]:.4g}"
                )

    def to_latent(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (..., Z) in [-1, 1] to latents."""
        return self.center + self.scale * actions

    def normalise(self, latents: np.ndarray) -> np.ndarray:
        """Latents (..., Z) to normalised actions; [-1, 1] inside the box."""
        return (latents - self.center) / self.scale

    def random_latents(self, uniform: np.ndarray) -> np.ndarray:
        """Exploration: numbers (..., Z) from [0, 1) to latents in the inner half of the box, as published."""
        return self.to_latent(RANDOM_SHARE * (2 * uniform - 1))
