"""How the processes of this program compute on a CPU: their threads, and the memory of their tensors."""

import ctypes
import sys

import torch

M_TOP_PAD = -2  # malloc.h of glibc
KEPT_BYTES = 256 * 2**20


def compute_with(threads: int) -> None:
    """Prepares a process that does nothing else but compute.

    Args:
        threads: that torch uses for one operation.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Lets this process keep the memory of tensors that are gone, for those that come next.

    By default, glibc gives large blocks back to the operating system at once. The next update asks for the same
    blocks, and the system has to clear every page of them again; `benchmarks/memory.py` measures what that costs. Now
    up to 256 MiB of free memory stay with the process. Results do not change.

    Returns:
        whether it does: only glibc, the C library of most Linux systems, can be told to.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_TOP_PAD, KEPT_BYTES))
