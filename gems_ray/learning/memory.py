"""What to tell a user whose batch does not fit into a GPU's memory."""

from collections.abc import Callable
from typing import Any

import torch

from gems_ray.algorithms.base import AnyAlgorithm
from gems_ray.data.sampler import Sampler
from gems_ray.device import room_on

PROBES = (64, 128)  # batch sizes whose memory is measured; what an update needs grows linearly with the batch


def out_of_memory_message(algorithm: AnyAlgorithm, sampler: Sampler[Any]) -> str:
    """One line: the batch size that did not fit, one that would, and the two ways out."""
    batch_size = algorithm.config.batch_size
    fitting = largest_batch(algorithm, sampler)
    setting = f"settings.{algorithm.name}.batch_size"
    smaller = f"Set {setting} to {fitting}" if fitting else "Not even a small batch fits: free the GPU"
    return f"{setting} {batch_size}: the GPU's memory is exhausted. {smaller}, or train on the CPU (device: cpu)."


def largest_batch(algorithm: AnyAlgorithm, sampler: Sampler[Any]) -> int:
    """The largest power of two that fits as batch size on the algorithm's GPU, 0 for none; updates the algorithm."""
    device = algorithm.device

    def needed(batch_size: int) -> int:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        algorithm.update(sampler.sample(batch_size))
        return torch.cuda.max_memory_allocated(device) - before

    torch.cuda.empty_cache()
    try:
        return batch_that_fits(needed, room_on(device))
    except torch.OutOfMemoryError:
        return 0


def batch_that_fits(needed: Callable[[int], int], free: int) -> int:
    """The largest power of two whose update needs no more than the free memory; 0 if there is none.

    Args:
        needed: bytes that an update of a batch size takes, measured at small ones.
        free: bytes.
    """
    small, large = (needed(batch_size) for batch_size in PROBES)
    per_row = max(1.0, (large - small) / (PROBES[1] - PROBES[0]))
    rows = int((free - (small - per_row * PROBES[0])) // per_row)
    return 1 << (rows.bit_length() - 1) if rows > 0 else 0
