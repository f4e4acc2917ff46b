"""How the processes of this program compute on a CPU: their threads, and the memory of their tensors."""

import ctypes
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


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
    blocks, and the system has to clear every page of them again; `benchmarks/freed_memory.py` measures what that
    costs. The process stays as large as it was at its largest. Results do not change.

    Returns:
        whether it does: only glibc, the C library of most Linux systems, can be told to.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return bool(mallopt and mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
