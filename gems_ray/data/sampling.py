"""The sampler that gives an algorithm the experience that it declares."""

from typing import Any

import numpy as np
import torch

from gems_ray.data.experience import Experience, Windows
from gems_ray.data.replay import ReplayBuffer
from gems_ray.data.sampler import Sampler
from gems_ray.data.schema import Dataset
from gems_ray.data.windows import WindowBuffer


def make_sampler(
    experience: Experience,
    dataset: Dataset,
    rows: np.ndarray | None = None,
    *,
    seed: int,
    device: str | torch.device,
    normalize_states: bool,
    reward_scale: str | float,
    bootstrap_time_limit: bool,
) -> Sampler[Any]:
    """A sampler over the arrays of a dataset, which it shares.

    Args:
        experience: what batches are made of.
        dataset: logged transitions.
        rows: (n,) int64, the only rows that are drawn; None for all.
        seed: seed of the `batch` stream.
        device: where batches are made.
        normalize_states: whether states are normalised by their mean and standard deviation.
        reward_scale: `none`, a factor, or `std` to divide by the standard deviation.
        bootstrap_time_limit: whether `dones` of transitions are 0 at the end of an episode too.
    """
    center, scale = dataset.action_box()
    sizes = dataset.observations.shape[1], dataset.actions.shape[1], len(dataset)
    options: dict[str, Any] = {
        "seed": seed,
        "normalize_states": normalize_states,
        "action_center": center,
        "action_scale": scale,
        "reward_scale": reward_scale,
    }
    sampler: Sampler[Any]
    if isinstance(experience, Windows):
        sampler = WindowBuffer(*sizes, device, length=experience.length, **options)
    else:
        sampler = ReplayBuffer(*sizes, device, bootstrap_time_limit=bootstrap_time_limit, **options)
    sampler.load_d4rl_dataset(dataset.arrays, rows)
    return sampler
