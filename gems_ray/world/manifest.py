"""The manifest of a world bundle, checked against the weights before any memory is asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.overrides import TorchFunctionMode

from gems_ray.config import Config, build, checked, validate
from gems_ray.errors import ConfigError, WorldError
from gems_ray.flat_state import FlatState
from gems_ray.world.ranker import Size
from gems_ray.yaml_file import plain, read_yaml, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

SCHEMA_VERSION = 1
LARGEST = 2_000_000_000  # bytes of the weights; the shipped ones have 3 to 4 million
MANIFEST, WEIGHTS = "manifest.yaml", "weights.safetensors"
ADVICE = "Train it again or copy it anew."

D = TypeVar("D", bound="DataclassInstance")


class BeliefSizes(Config):
    """Sizes of a belief encoder."""

    num_items: Size
    slate_size: Size
    item_dim: Size
    belief_dim: Size


class AgentSizes(BeliefSizes):
    """Sizes of an agent: its belief encoder, and the width of its policy."""

    hidden_size: Size


class WorldManifest(Config):
    """What manifest.yaml says."""

    called = "a world's manifest"

    schema_version: int
    fingerprint: str = Field(pattern="^[0-9a-f]{16}$")
    environment: dict[str, Any]
    ranker: dict[str, Any]
    agents: Annotated[tuple[str, ...], Field(max_length=100)]  # qualities, in the order in which they were added
    agent_sizes: dict[str, AgentSizes] = {}  # a manifest without it means the default sizes
    belief_sizes: BeliefSizes | None = None  # of the world's own encoder, where it has no expert
    facts: dict[str, Any]


def read_bundle(folder: Path) -> tuple[WorldManifest, FlatState]:
    """The two files of a bundle.

    Raises:
        WorldError: one is missing, is not readable, or lacks something.
    """
    for name in (MANIFEST, WEIGHTS):
        if not (folder / name).is_file():
            raise WorldError(f"{folder}: not a readable world bundle ({name} is no file in it). {ADVICE}")
    if (size := (folder / WEIGHTS).stat().st_size) > LARGEST:
        raise WorldError(f"{folder}: {WEIGHTS}: expected at most {LARGEST:,} bytes, found {size:,}. {ADVICE}")
    try:
        document = read_yaml(folder / MANIFEST)
        tensors = load_file(folder / WEIGHTS)
    except (ConfigError, SafetensorError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise WorldError(f"{folder}: not a readable world bundle ({reason}). Copy it anew or train it again.") from None
    version = plain(document.data.get("schema_version"))
    if version != SCHEMA_VERSION or isinstance(version, bool):
        found = f"the text {shown(version)}" if isinstance(version, str) else shown(version).strip("`")
        raise WorldError(
            f"{folder}: bundle of schema version {found}, this program reads {SCHEMA_VERSION}. Use the version of the "
            "program that made it."
        )
    try:
        return validate(document.data, WorldManifest), tensors
    except ConfigError as error:
        raise WorldError(f"{folder}: the bundle is not complete ({_first(error)}). {ADVICE}") from None


def section(kind: type[D], values: Mapping[str, Any]) -> D:
    """A section of the manifest as its dataclass, every value of its type and within its bounds.

    Raises:
        KeyError, TypeError, ValueError: a field is unknown, missing, or wrong.
    """
    return checked(build(kind, values))


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
