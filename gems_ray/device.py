"""What is particular about a GPU: its number, its memory, its clock, the precision of its products, its failures."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from gems_ray.errors import DeviceError

CONTEXT_BYTES = 500_000_000  # of a GPU's memory that every process takes before its first tensor


def indexed(device: str | torch.device) -> torch.device:
    """The device with its number: parts of torch refuse `cuda` alone."""
    found = torch.device(device)
    if found.type != "cuda" or found.index is not None:
        return found
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)


def room(free: int, total: int, reserved: int, fraction: float) -> int:
    """Bytes that a process can still take on a GPU.

    Args:
        free: bytes that no process has taken.
        total: bytes of the GPU.
        reserved: bytes that this process has taken for tensors.
        fraction: of the total, the most that this process may take for tensors.
    """
    return max(0, min(free, int(fraction * total) - reserved))


def room_on(device: torch.device) -> int:
    """Bytes that this process can still take on a GPU, which it may share."""
    free, total = torch.cuda.mem_get_info(device)
    return room(
        free, total, torch.cuda.memory_reserved(device), torch.cuda.get_per_process_memory_fraction(indexed(device))
    )


def memory_fraction(share: float, total: int) -> float:
    """The part of a GPU's memory that a cell may take for tensors.

    Args:
        share: of the GPU that the cell has; what the CUDA context of its process takes is a part of it.
        total: bytes of the GPU.
    Raises:
        DeviceError: the context alone takes the whole share.
    """
    fraction = share - CONTEXT_BYTES / total
    if fraction <= 0:
        raise DeviceError(
            f"resources.gpu {share:g}: this share of the GPU is {share * total / 1e9:.1f} GB, and CUDA itself takes "
            f"{CONTEXT_BYTES / 1e9:.1f} GB in every process. Ask for a larger share."
        )
    return fraction


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was given: before a clock is read, and to see whether it still works.

    Raises:
        torch.AcceleratorError: the GPU, or this process on it, has failed.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def matmul_precision(device: torch.device, precision: str) -> Iterator[None]:
    """Matrix products of float32 on a GPU in a precision of torch, for a while; a CPU keeps its own.

    Args:
        device: where the products are computed.
        precision: `highest`, or `high` for TF32.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
