"""Datasets in the Farama Foundation's format Minari, without loss in either direction."""

import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gems_ray.data.npz import check_dataset
from gems_ray.data.schema import Dataset
from gems_ray.data.trajectories import last_steps, trajectory_ends
from gems_ray.envs.registration import environment_id
from gems_ray.errors import ConfigError, DatasetError
from gems_ray.world.bundle import find_world, shipped_worlds

NAME = re.compile(r"([-\w]+/)*[-\w]+-v\d+")
METADATA = "gems_ray"  # where Minari's own metadata holds ours, as JSON text
SHOWN_CHARACTERS = 200  # of an error that another package tells
UNKNOWN = {"slates": -1, "clicks": False}  # of the first slate of an episode, which our format leaves out


def export_minari(dataset: Dataset, name: str) -> Path:
    """Writes a dataset into Minari's folder of local datasets.

    Every episode becomes one of Minari's. `terminals` and `timeouts` become terminations and truncations, slates and
    clicks become entries of `infos`, where index 0 stands for the first slate, which a dataset does not hold. Where the
    dataset was collected in a shipped world, `recover_environment` makes it, with actions in latent units.

    Args:
        dataset: of which each observation is the next one of the row before, within an episode.
        name: what Minari calls it, such as `gems_ray/diffuse_mix-expert-v0`.
    Returns:
        the folder.
    Raises:
        ConfigError: Minari is not installed, or the name is not one of Minari's.
        DatasetError: a dataset has this name already, or an episode is not in one piece.
    """
    minari = _minari()
    folder = _folder(name)
    if folder.exists():
        raise DatasetError(f"{name}: Minari has a dataset of this name in {folder}. Choose another name or version.")
    ends = trajectory_ends(last_steps(dataset.arrays))
    _check_in_one_piece(dataset, ends)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what an author might tell besides
        try:
            made = minari.create_dataset_from_buffers(name, list(_episodes(dataset, ends)), **_description(dataset))
            if dataset.metadata is not None:
                made.storage.update_metadata({METADATA: dataset.metadata.model_dump_json()})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    return folder


def import_minari(name: str) -> Dataset:
    """Reads a dataset from Minari's folder of local datasets.

    Args:
        name: what Minari calls it.
    Returns:
        what `export_minari` was given, or the transitions of a dataset from elsewhere. An episode of those that breaks
        off without an end is marked as cut off by a time limit.
    Raises:
        ConfigError: Minari is not installed, or the name is not one of Minari's.
        DatasetError: there is no such dataset, it is damaged, or it is not as `load_dataset` expects.
    """
    minari = _minari()
    folder = _folder(name)
    if not folder.is_dir():
        raise DatasetError(f"{name}: Minari has no such dataset in {folder}. There are: {_known(minari)}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an author who tells nothing
        try:
            _check_spaces(folder)
            found = minari.load_dataset(name)
            metadata = found.storage.metadata.get(METADATA)
            parts = [_arrays(episode) for episode in found.iterate_episodes()]
            for part in parts[:-1]:  # the last one may be unfinished, as in an npz
                part["timeouts"][-1] |= not part["terminals"][-1]
            keys = [key for key in parts[0] if all(key in part for part in parts)] if parts else []
            arrays = {key: np.concatenate([part[key] for part in parts]) for key in keys}
        except Exception as error:  # whatever Minari, h5py and gymnasium stumble over in the file of a stranger
            said = " ".join(str(error).split())[:SHOWN_CHARACTERS] or type(error).__name__
            raise DatasetError(
                f"{name}: cannot be read ({said}). Expected observations and actions that are arrays, and episodes of "
                "one step or more. Export it again, or download it anew."
            ) from None
    if not parts:
        raise DatasetError(f"{name}: holds no episode. Expected at least one.")
    if metadata is not None:
        arrays["metadata"] = np.array(metadata, dtype=None if isinstance(metadata, str) else object)
    return check_dataset(arrays, name)


def _check_spaces(folder: Path) -> None:
    """Makes sure that a dataset describes its spaces.

    Without them Minari would make the environment that the dataset names, whose import path its author chose.

    Raises:
        ValueError: it does not.
    """
    from minari.dataset.minari_storage import MinariStorage

    described = MinariStorage.read_raw_metadata(folder / "data")
    for space in ("observation_space", "action_space"):
        if space not in described:
            raise ValueError(f"it does not describe its {space}")


def _known(minari: ModuleType) -> str:
    """Names of the local datasets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of datasets that nobody asked for
        try:
            return ", ".join(minari.list_local_datasets()) or "none"
        except (ValueError, TypeError):
            return "unknown, for a folder among them has a name that Minari cannot read"


def _minari() -> ModuleType:
    try:
        import h5py  # noqa: F401 - Minari itself notices too late that one of the two is missing
        import minari
        import PIL  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error.name}: is not installed. Install it with `pip install 'gems_ray[minari]'`."
        ) from None
    return minari


def _folder(name: str) -> Path:
    """Where Minari keeps a dataset."""
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.storage import get_dataset_path

    try:
        if not NAME.fullmatch(name):
            raise ValueError(name)
        parse_dataset_id(name)  # Minari's own rule, which knows no namespace of one character
        folder = Path(get_dataset_path(name))
        folder.exists()  # the file system has a rule too: no part is longer than 255 bytes
    except (ValueError, OSError) as error:
        reason = f" ({error.strerror})" if isinstance(error, OSError) else ""
        raise ConfigError(
            f"`{name[:SHOWN_CHARACTERS]}`: is no name of Minari{reason}. Expected one such as "
            "gems_ray/diffuse_mix-expert-v0."
        ) from None
    return folder


def _check_in_one_piece(dataset: Dataset, ends: np.ndarray) -> None:
    inside = np.setdiff1d(np.arange(len(dataset)), ends)
    same = (dataset.next_observations[inside] == dataset.observations[inside + 1]).all(axis=1)
    if not same.all():
        raise DatasetError(
            f"row {inside[~same][0]}: its next observation is not the observation of the row after it. Minari holds "
            "whole episodes, so expected rows in the order in which they were logged."
        )


def _episodes(dataset: Dataset, ends: np.ndarray) -> Iterator[Any]:
    """One of Minari's episode buffers for each trajectory."""
    from minari.data_collector import EpisodeBuffer

    timeouts = np.zeros(len(dataset), dtype=bool) if dataset.timeouts is None else dataset.timeouts
    shown = {name: array for name in UNKNOWN if (array := getattr(dataset, name)) is not None}
    for number, (start, end) in enumerate(zip([0, *(ends[:-1] + 1)], ends + 1, strict=True)):
        yield EpisodeBuffer(
            id=number,
            observations=np.concatenate([dataset.observations[start:end], dataset.next_observations[end - 1 : end]]),
            actions=dataset.actions[start:end],
            rewards=dataset.rewards[start:end],
            terminations=dataset.terminals[start:end],
            truncations=timeouts[start:end],
            infos={
                name: np.concatenate([np.full_like(array[:1], UNKNOWN[name]), array[start:end]])
                for name, array in shown.items()
            }
            or None,
        )


def _arrays(episode: Any) -> dict[str, np.ndarray]:
    """The arrays of our format for one of Minari's episodes."""
    observations = np.asarray(episode.observations)
    arrays = {
        "observations": observations[:-1],
        "actions": np.asarray(episode.actions),
        "rewards": episode.rewards,
        "next_observations": observations[1:],
        "terminals": episode.terminations,
        "timeouts": np.array(episode.truncations),
    }
    infos = episode.infos or {}
    return arrays | {name: infos[name][1:] for name in UNKNOWN if name in infos}


def _description(dataset: Dataset) -> dict[str, Any]:
    """Spaces and environment of a dataset, and what random slates and the expert score there."""
    box, metadata = dataset.action_box(), dataset.metadata
    described: dict[str, Any] = {
        "observation_space": spaces.Box(-1.0, 1.0, dataset.observations.shape[1:], np.float32),
        "action_space": spaces.Box(box.center - box.scale, box.center + box.scale),
    }
    if metadata is None:
        return described
    described["algorithm_name"] = metadata.quality
    described["description"] = f"{metadata.episodes} episodes of {metadata.quality} data in {metadata.environment}."
    if metadata.environment in shipped_worlds():
        world = find_world(metadata.environment)
        if world.fingerprint == metadata.world_fingerprint:
            spec = gymnasium.spec(environment_id(metadata.environment))
            scores = {name: world.facts["test"][name]["return_mean"] for name in ("random", "expert")}
            described["env"] = described["eval_env"] = _in_latent_units(spec)
            described |= {"ref_min_score": scores["random"], "ref_max_score": scores["expert"]}
    return described


def _in_latent_units(spec: Any) -> Any:
    """What makes the environment whose actions are those of a dataset."""
    return type(spec)(
        spec.id,
        entry_point=spec.entry_point,
        vector_entry_point=spec.vector_entry_point,
        kwargs={**spec.kwargs, "units": "latent"},
    )
