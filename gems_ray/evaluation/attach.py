"""Binding a foreign dataset to a world: its arrays stay as they are, and metadata names the world."""

import zipfile
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np

from gems_ray import __version__
from gems_ray.archive import member_pieces
from gems_ray.data.npz import load_dataset
from gems_ray.data.schema import DatasetMetadata
from gems_ray.data.trajectories import last_steps, trajectory_ends
from gems_ray.errors import DatasetError, WorldError
from gems_ray.evaluation.belonging import check_world
from gems_ray.evaluation.examine import Belonging, examine
from gems_ray.files import atomic_path
from gems_ray.world.bundle import World


def attach_dataset(path: Path, world: World, quality: str, output: Path | None = None) -> Belonging:
    """Binds a foreign file to a world: its arrays stay as they are, and metadata names the world.

    Args:
        path: npz file without metadata.
        world: in which it was logged.
        quality: what the file calls its behaviour policy.
        output: file to write; None for the same one, or the one that a link leads to, which is replaced when everything
            is written.
    Returns:
        how sure the binding is.
    Raises:
        DatasetError: the file is damaged, or bound to another world already.
        WorldError: it was not logged in this world.
    """
    dataset = load_dataset(path)
    if dataset.metadata is not None:
        if dataset.metadata.world_fingerprint == world.fingerprint:
            check_world(dataset, world, str(path))
            raise DatasetError(f"{path}: is bound to world {world.fingerprint} already. There is nothing to do.")
        raise DatasetError(
            f"{path}: is bound to world {dataset.metadata.world_fingerprint} ({dataset.metadata.environment}) already. "
            "Name that world where you use it, or remove `metadata` from the file."
        )
    found = examine(dataset, world, str(path))
    if found.refusal is not None:
        raise WorldError(f"{path}: does not belong to world {found.world}: {found.refusal}")
    episodes = len(trajectory_ends(last_steps(dataset.arrays)))
    metadata = DatasetMetadata(
        environment=world.environment.name,
        quality=quality,
        episodes=episodes,
        world_fingerprint=world.fingerprint,
        action_center=tuple(world.bounds.center.tolist()),
        action_scale=tuple(world.bounds.scale.tolist()),
        behavior_return=round(float(dataset.rewards.sum(dtype=np.float64)) / episodes, 4),
        program_version=__version__,
        attached=found.facts,
    )
    _write(path, path.resolve() if output is None else output, metadata)
    return found


def _write(source: Path, target: Path, metadata: DatasetMetadata) -> None:
    """Copies an archive member by member, whatever is in it, and adds the metadata."""
    text = BytesIO()
    np.save(text, np.array(metadata.model_dump_json(exclude_none=True)))
    with atomic_path(target) as partial, zipfile.ZipFile(source) as old, zipfile.ZipFile(partial, "w") as new:
        for member in old.infolist():
            entry = zipfile.ZipInfo(member.filename)
            entry.compress_type = member.compress_type
            pieces = member_pieces(old, member, source)
            first = next(pieces, b"")  # of a member that cannot be read, nothing is written
            with new.open(entry, "w", force_zip64=True) as written:
                written.writelines(chain([first], pieces))
        new.writestr(zipfile.ZipInfo("metadata.npy"), text.getvalue())
