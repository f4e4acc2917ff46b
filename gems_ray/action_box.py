"""The box of latent actions, between the units of the decoder and [-1, 1]."""

from typing import NamedTuple

import numpy as np

RANDOM_SHARE = 0.5  # of the box that random latents fill


class ActionBox(NamedTuple):
    """Latents `center + scale * a` for actions a in [-1, 1]; both (Z,) float32, in latent units."""

    center: np.ndarray
    scale: np.ndarray

    def to_latent(self, actions: np.ndarray) -> np.ndarray:
        """Normalised actions (..., Z) in [-1, 1] to latents."""
        return self.center + self.scale * actions

    def normalise(self, latents: np.ndarray) -> np.ndarray:
        """Latents (..., Z) to normalised actions; [-1, 1] inside the box."""
        return (latents - self.center) / self.scale

    def random_latents(self, uniform: np.ndarray) -> np.ndarray:
        """Exploration: numbers (..., Z) from [0, 1) to latents in the inner half of the box, as published."""
        return self.to_latent(RANDOM_SHARE * (2 * uniform - 1))
