"""A recording of torch's operations that can be played again without Python: on a CPU what a CUDA graph is on a GPU.

A captured graph repeats kernels on the memory that they had during the capture. What Python did between the kernels is
not repeated, so a number that depends on the count of updates, a decision on a value, or a random number drawn on the
way would be wrong in every replay. The tape repeats operations on the tensors that they had during the recording, so
that the same mistakes have the same consequences here, where no GPU is needed to find them.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations that wait for the device or read values on the host, beside those that torch itself has marked.
WAITS = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::lift_fresh",  # a tensor made of Python's numbers: a copy from the host
    "aten::_pin_memory",
    "aten::record_stream",
}
MARKS = {
    torch.Tag.nondeterministic_seeded: "draws random numbers",
    torch.Tag.data_dependent_output: "reads a value on the host",
}

ATTENTION = ("attention", "attention_for_cpu", "attention_for_mps")  # random only where it drops something itself


def forbidden(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why an operation cannot stand in a captured graph; empty where it can."""
    name = function._schema.name
    for tag, reason in MARKS.items():
        if tag in function.tags and not (name.endswith(ATTENTION) and not _dropout(function, args, kwargs)):
            return f"{name} {reason}"
    if name in WAITS:
        return f"{name} waits for the device or copies from the host"
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if name in ("aten::index", "aten::index_put", "aten::index_put_") and any(
        tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:]
    ):
        return f"{name} with a mask counts its true values on the host"
    target = kwargs.get("device")
    if target is not None and tensors and torch.device(target).type != tensors[0].device.type:
        return f"{name} copies to another device"
    if name == "aten::copy_" and args[0].device.type != args[1].device.type:
        return f"{name} copies between devices"
    return ""


class Forbidden(TorchDispatchMode):
    """Lists what could not stand in a captured graph."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operations = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Looks at one operation."""
        self.operations += 1
        if reason := forbidden(function, args, kwargs or {}):
            self.found.append(reason)
        return function(*args, **(kwargs or {}))


class Tape(Forbidden):
    """Records the operations of a block of code in which it is the context."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[Callable[[], None]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs one operation and notes how to repeat it into the same memory."""
        kwargs = kwargs or {}
        results = super().__torch_dispatch__(function, types, args, kwargs)
        if function._schema.is_mutable:  # its results are arguments
            self._steps.append(lambda: function(*args, **kwargs))
            return results
        known = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        fresh = [index for index, leaf in enumerate(tree_leaves(results)) if _is_new(leaf, known)]
        if fresh:  # else views, which lie in memory that is filled already
            kept = tree_leaves(results)

            def repeat() -> None:
                again = tree_leaves(function(*args, **kwargs))
                for index in fresh:
                    kept[index].copy_(again[index])

            self._steps.append(repeat)
        return results

    @torch.no_grad()
    def play(self) -> None:
        """Repeats all operations; the results lie where the recorded ones lay."""
        for step in self._steps:
            step()


def record(function: Callable[[], None]) -> Callable[[], None]:
    """Calls a function and returns what repeats it without Python, as the capture of a CUDA graph does.

    Raises:
        RuntimeError: an operation cannot stand in a captured graph.
    """
    tape = Tape()
    with tape:
        function()
    if tape.found:
        raise RuntimeError(f"cannot be captured: {', '.join(sorted(set(tape.found)))}")
    return tape.play


def _dropout(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """The share that an attention drops."""
    names = [argument.name for argument in function._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}.get("dropout_p", 0.0)


def _is_new(value: Any, known: set[int]) -> bool:
    return isinstance(value, Tensor) and _storage(value) not in known


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
