"""Whether a dataset belongs to the world that it names."""

import numpy as np

from gems_ray.data.schema import Dataset, DatasetMetadata
from gems_ray.errors import DatasetError, WorldError
from gems_ray.evaluation.replay import explain
from gems_ray.world.bundle import World

ROWS_CHECKED = 64  # of a file that names its world; they take some milliseconds
FEWEST_EXPLAINED = 0.95  # of them; a few ties of the ranker may fall differently on another machine
NAME_IT = "Collect the dataset anew, or name the world that it was collected in."


def check_world(dataset: Dataset, world: World, where: str = "dataset") -> None:
    """Makes sure that a dataset is evaluated in the world that it was collected in.

    What the metadata says is compared with the world, and some transitions are replayed in it.

    Args:
        dataset: with metadata.
        world: in which its policies would be evaluated.
        where: dataset file, for the message.
    Raises:
        WorldError: it was collected in another world.
        DatasetError: it does not say in which, or it says something that its arrays do not confirm.
    """
    metadata = dataset.metadata
    if metadata is None:
        raise DatasetError(f"{where}: no metadata, so nothing says in which world it was collected.")
    if metadata.world_fingerprint != world.fingerprint:
        raise WorldError(
            f"{where}: collected in world {metadata.world_fingerprint} ({metadata.environment}), but "
            f"the world of {world.environment.name} is {world.fingerprint}. {NAME_IT}"
        )
    _compare(metadata, world, where)
    check_items(dataset, world, where)
    rows = np.unique(np.linspace(0, len(dataset) - 1, ROWS_CHECKED).astype(np.int64))
    explained = explain(world, dataset, rows).explained
    if explained.mean() < FEWEST_EXPLAINED:
        raise WorldError(
            f"{where}: `metadata` names world {world.fingerprint} ({world.environment.name}), but {(~explained).sum()} "
            f"of {len(rows)} transitions cannot have happened in it: its ranker and its belief encoder lead to other "
            f"beliefs. {NAME_IT}"
        )


def check_items(dataset: Dataset, world: World, where: str) -> None:
    """Makes sure that the slates of a dataset hold items of a world.

    Args:
        dataset: with or without slates.
        world: that has I items.
        where: dataset file, for the message.
    Raises:
        DatasetError: there are other items.
    """
    most = world.environment.num_items - 1
    if dataset.slates is not None and (dataset.slates.min() < 0 or dataset.slates.max() > most):
        found = f"{dataset.slates.min()} to {dataset.slates.max()}"
        raise DatasetError(f"{where}: `slates`: expected items 0 to {most}, found {found}. Collect the file anew.")


def _compare(metadata: DatasetMetadata, world: World, where: str) -> None:
    if metadata.environment != world.environment.name:
        raise WorldError(
            f"{where}: `metadata` says environment {metadata.environment}, but world {world.fingerprint} simulates "
            f"{world.environment.name}. {NAME_IT}"
        )
    for field, side in (("action_center", world.bounds.center), ("action_scale", world.bounds.scale)):
        found = np.asarray(getattr(metadata, field), dtype=np.float32)
        if found.shape != side.shape or not np.array_equal(found, side):
            raise WorldError(
                f"{where}: `metadata` says another {field} than the action box of world {world.fingerprint} has. "
                f"{NAME_IT}"
            )
