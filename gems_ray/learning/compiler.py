"""Torch's compiler: what it needs, and how it is called."""

import importlib.util
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def missing_for_compilation(cuda: bool) -> str | None:
    """What torch's compiler needs and this machine lacks; None when nothing is missing."""
    if shutil.which("g++") is None:
        return "g++"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return "Python.h (Debian: python3-dev)"
    if cuda and importlib.util.find_spec("triton") is None:
        return "triton"
    return None


def compile_function(function: Callable[..., Any], cuda: bool) -> Callable[..., Any]:
    """The function through torch's compiler as one graph, gradients and optimiser included."""
    torch.compiler.reset()  # torch keeps a few versions of a function only, and a process may train many cells
    options: dict[str, Any] = {"compile_threads": 1}  # the other cores belong to other cells
    if not cuda:
        options["cpp_wrapper"] = True
    compiled = torch.compile(function, fullgraph=True, dynamic=False, options=options)

    def call(*arguments: Any) -> Any:
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return compiled(*arguments)

    return call
