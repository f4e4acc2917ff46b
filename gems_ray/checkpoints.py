"""Checkpoints: tensors and plain facts in one safetensors file, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from gems_ray.errors import CheckpointError
from gems_ray.files import atomic_path
from gems_ray.flat_state import FlatState


def write_checkpoint(path: Path, tensors: FlatState, facts: Mapping[str, Any]) -> None:
    """Writes tensors and facts.

    Args:
        path: of the file.
        tensors: by name, on the CPU.
        facts: what JSON can hold.
    Raises:
        OSError: the disk is full; safetensors' own writer would hide that.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors, {"facts": json.dumps(dict(facts))}))


def read_checkpoint(path: Path, device: str = "cpu") -> tuple[FlatState, dict[str, Any]]:
    """Tensors and facts of a checkpoint.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or no checkpoint.
    """
    try:
        facts = read_facts(path)
        return load_file(path, device=device), facts
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}). Remove it to repeat that part.") from None


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a checkpoint, without its tensors.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is damaged, or no checkpoint.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["facts"])
        if not isinstance(facts, dict):
            raise ValueError("expected facts by name")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged checkpoint ({error}). Remove it to repeat that part.") from None
    return facts
