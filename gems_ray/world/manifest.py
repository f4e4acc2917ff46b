"""The manifest of a world bundle, checked against the weights before any memory is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from gems_ray.config import Config, build, validate
from gems_ray.errors import ConfigError, WorldError
from gems_ray.flat_state import FlatState
from gems_ray.yaml_file import plain, read_yaml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
MANIFEST, WEIGHTS = "manifest.yaml", "weights.safetensors"
ADVICE = "Train it again or copy it anew."

D = TypeVar("D", bound="DataclassInstance")


class WorldManifest(Config):
    """What manifest.yaml says."""

    called = "a world's manifest"

    schema_version: int
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")
    environment: dict[str, Any]
    ranker: dict[str, Any]
    agents: tuple[str, ...]  # qualities, in the order in which they were added
    agent_sizes: dict[str, dict[str, int]] = {}  # a manifest without it means the default sizes
    belief_sizes: dict[str, int] | None = None  # of the world's own encoder, where it has no expert
    facts: dict[str, Any]


def read_bundle(folder: Path) -> tuple[WorldManifest, FlatState]:
    """The two files of a bundle.

    Raises:
        WorldError: one is missing, is not readable, or lacks something.
    """
    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            raise WorldError(f"{folder}: not a readable world bundle ({name} is no file in it). {ADVICE}")
    try:
        document = read_yaml(folder / MANIFEST)
        tensors = load_file(folder / WEIGHTS)
    except (ConfigError, FileNotFoundError, SafetensorError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise WorldError(f"{folder}: not a readable world bundle ({reason}). Copy it anew or train it again.") from None
    version = plain(document.data.get("schema_version"))
    if version != SCHEMA_VERSION:
        raise WorldError(f"{folder}: bundle of schema version {version}, this program reads {SCHEMA_VERSION}.")
    try:
        return validate(document.data, WorldManifest), tensors
    except ConfigError as error:
        raise WorldError(f"{folder}: the bundle is not complete ({_first(error)}). {ADVICE}") from None


def section(kind: type[D], values: Mapping[str, Any]) -> D:
    """A section of the manifest as its dataclass, every value of its type.

    Raises:
        KeyError, TypeError, ValueError: a field is unknown, missing, or has another type.
    """
    built = build(kind, values)
    try:
        TypeAdapter(kind).validate_python(asdict(built))
    except ValidationError as error:
        problem = error.errors()[0]
        raise ValueError(f"`{'.'.join(map(str, problem['loc']))}`: {problem['msg']}") from None
    return built


def fitting(make: Callable[[], dict[str, nn.Module]], tensors: FlatState) -> dict[str, nn.Module]:
    """Modules of the stated sizes, made after their shapes were found to be those of the weights.

    Args:
        make: builds the modules by name.
        tensors: weights of the bundle.
    Raises:
        ValueError: a tensor is missing, or has another shape or type.
    """
    with torch.device("meta"), NoInitialValues():  # shapes without memory, however large
        expected = {
            f"{name}.{key}": value for name, module in make().items() for key, value in module.state_dict().items()
        }
    for name, value in expected.items():
        if name not in tensors:
            raise ValueError(f"no tensor `{name}` in {WEIGHTS}")
        check_tensor(tensors, name, tuple(value.shape))
    with NoInitialValues():  # the weights come from the bundle, and torch's random numbers are the caller's
        return make()


class NoInitialValues(TorchFunctionMode):
    """Modules are made without drawing initial values.

    For tensors without memory torch would import its compiler to draw from a normal distribution. That takes seconds in
    every process that opens a world.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Passes every function on, but those of `torch.nn.init`."""
        if getattr(func, "__module__", "") == nn.init.__name__:
            return None
        return func(*args, **(kwargs or {}))


def check_tensor(tensors: FlatState, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor as a float32 array.

    Raises:
        KeyError, ValueError: it is missing, has another shape or type, or is not finite.
    """
    tensor = tensors[name]
    if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
        found = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise ValueError(f"`{name}`: expected {shape} float32, found {found}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"`{name}`: holds values that are not finite")
    return tensor.numpy()


def _first(error: ConfigError) -> str:
    """The first mistake, on one line."""
    return " ".join(str(error).splitlines()[0].split()).rstrip(".")
