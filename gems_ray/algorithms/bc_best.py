"""Best-X% behaviour cloning: cloning of the trajectories with the highest returns."""

import numpy as np
from pydantic import Field

from gems_ray.algorithms.base import OF_SAMPLER
from gems_ray.algorithms.bc import BCConfig, Cloning
from gems_ray.data.trajectories import best_trajectories


class BestBCConfig(BCConfig):
    """Settings of best-X% behaviour cloning; defaults from CORL."""

    best_fraction: float = Field(0.1, gt=0, le=1, description="Share of the trajectories that is cloned.")


class BestBC(Cloning[BestBCConfig]):
    """Cloning of the share of trajectories with the highest discounted returns."""

    name = "bc_best"
    Config = BestBCConfig
    per_cell = ("best_fraction", "learning_rate", "discount", *OF_SAMPLER)

    def select_rows(self, rewards: np.ndarray, last: np.ndarray) -> np.ndarray:
        """Rows of the best trajectories."""
        return best_trajectories(rewards, last, self.config.best_fraction, self.config.discount)
