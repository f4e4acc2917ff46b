"""Capture of a piece of work on a GPU as one graph, which is then launched with one call."""

import functools
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

WARM_UP_RUNS = 3  # before a capture, as the CUDA manual asks


def capture(launch: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    """Runs the work a few times, then records its kernels; what is returned plays them again, on the same memory.

    Args:
        launch: starts the work; it reads and writes tensors that stay where they are.
        device: a GPU.
    """
    stream = _capture_stream(device)
    with torch.cuda.device(device), _kept_stream(), _no_garbage_collection():
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                launch()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            launch()
        torch.cuda.current_stream().wait_stream(stream)
    return graph.replay


@functools.cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One stream for all captures of a process: torch keeps room for matrix products for every stream it has seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _kept_stream() -> Iterator[None]:
    """The current stream is the same afterwards: after a capture that fails, torch stays on the other one."""
    before = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collects garbage first and not in between: to free memory of a GPU during a capture makes that fail."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
