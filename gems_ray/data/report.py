"""What is in a dataset file, whoever wrote it, and what can be done with it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gems_ray.action_box import ActionBox
from gems_ray.archive import HDF5_MAGIC, SHOWN_NAME, check_regular, read_arrays
from gems_ray.data.npz import checked_array, load_dataset
from gems_ray.data.schema import OPTIONAL, REQUIRED, Dataset
from gems_ray.data.trajectories import last_steps, trajectory_ends
from gems_ray.errors import DatasetError
from gems_ray.program import command_line
from gems_ray.simulator.environments import ENVIRONMENTS

BINS, BAR = 10, 40  # of the histogram: classes, characters of the longest bar
INSIDE = 1.001  # sides of the action box, beyond which an action is outside
MINARI = "metadata.json"  # beside the data of a Minari dataset
HASHED_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class DatasetReport:
    """What was found in a file.

    Args:
        path: of the file.
        layout: which of the layouts in circulation it has.
        environment: that its name or metadata tells; None where neither does.
        quality: that its name or metadata tells.
        arrays: name, shape and dtype of everything in it, one line each.
        problems: why it cannot be used, one line each; empty for a usable file.
        figures: what the arrays hold, one line each.
        possible: what can be done with it.
        impossible: what cannot, and what to do about it.
        returns: (E,) float64, sums of rewards of the episodes.
    """

    path: Path
    layout: str
    environment: str | None
    quality: str | None
    arrays: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    possible: tuple[str, ...] = ()
    impossible: tuple[str, ...] = ()
    returns: np.ndarray = field(default_factory=lambda: np.empty(0))

    def lines(self) -> list[str]:
        """The whole report as text."""
        text = [f"{self.path}: {self.layout}"]
        for title, part in (
            ("arrays", self.arrays),
            ("problems", self.problems),
            ("figures", self.figures),
            ("returns of the episodes, in clicks", histogram(self.returns) if len(self.returns) else ()),
            ("possible", self.possible),
            ("not possible", self.impossible),
        ):
            if part:
                text += [f"{title}:", *(f"  {line}" for line in part)]
        return [" ".join(line.split("\n")) for line in text]  # names in a file may hold anything


def inspect_dataset(path: Path, box: ActionBox | None = None) -> DatasetReport:
    """Looks into a dataset file.

    Args:
        path: of an npz file, or of a dataset of Minari.
        box: action box of the world that it may belong to; None takes the one that its metadata names, if any.
    Raises:
        DatasetError: it is missing, damaged, or no dataset in any known layout.
    """
    if (minari := _minari(path)) is not None:
        return minari
    arrays, present = read_arrays(path, [*REQUIRED, *OPTIONAL, "metadata"])
    environment, quality = _from_name(path)
    shapes = tuple(_described(name, arrays) for name in present[:50])
    problems = _problems(arrays)
    layout = _layout(arrays, path)
    if problems:
        return DatasetReport(path, layout, environment, quality, shapes, problems)
    try:
        dataset = load_dataset(path)
    except DatasetError as error:
        return DatasetReport(path, layout, environment, quality, shapes, (str(error).removeprefix(f"{path}: "),))
    metadata = dataset.metadata
    if metadata is not None:
        environment, quality = metadata.environment, metadata.quality
        box = box or dataset.action_box()
    ends = trajectory_ends(last_steps(dataset.arrays))
    sums = np.concatenate([[0.0], np.cumsum(dataset.rewards, dtype=np.float64)])
    returns = sums[ends + 1] - sums[np.concatenate([[0], ends[:-1] + 1])]
    possible, impossible = _uses(dataset, path)
    figures = (*_figures(dataset, ends, returns, box), *_duplicates(dataset, ends))
    return DatasetReport(path, layout, environment, quality, shapes, (), figures, possible, impossible, returns)


def histogram(values: np.ndarray) -> tuple[str, ...]:
    """Lines with a bar for each of ten classes of equal width.

    Args:
        values: (n,) float, n of 1 or more.
    """
    counts, edges = np.histogram(values, bins=BINS)
    return tuple(
        f"{low:9.1f} to {high:9.1f}  {count:8,}  {'#' * round(BAR * count / counts.max())}"
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )


def _minari(path: Path) -> DatasetReport | None:
    """A dataset of Minari, or one of its HDF5 files; None for everything else."""
    folder = next((place for place in (path, path / "data") if (place / MINARI).is_file()), None)
    if folder is None and path.is_dir():
        raise DatasetError(f"{path}: expected an npz file or a dataset of Minari, found another folder.")
    if folder is None:
        check_regular(path, DatasetError, "a dataset")
        with path.open("rb") as file:
            if file.read(len(HDF5_MAGIC)) != HDF5_MAGIC:
                return None
        kind = "Minari" if path.name == "main_data.hdf5" else "D4RL or Minari"
        return DatasetReport(path, f"an HDF5 file of {kind}", None, None, problems=(_CONVERT,))
    try:
        with (folder / MINARI).open(encoding="utf-8") as file:
            facts = json.loads(file.read(1_000_000))
        keys = [key for key in ("dataset_id", "total_episodes", "total_steps") if key in facts]
        known = [f"{key}: {str(facts[key])[:SHOWN_NAME]}" for key in keys]
    except (ValueError, TypeError, OSError, RecursionError):
        raise DatasetError(f"{folder / MINARI}: not readable as the facts of a Minari dataset.") from None
    return DatasetReport(path, "a dataset of Minari", None, None, figures=tuple(known), problems=(_IMPORT,))


_CONVERT = "it is no npz. Load it with its own library and save the five arrays with numpy.savez."
_IMPORT = "it is no npz. `dataset import --minari NAME --output FILE.npz` makes one of it."


def _from_name(path: Path) -> tuple[str | None, str | None]:
    """Environment and quality that the two layouts in circulation write into names."""
    name = path.name
    if found := re.fullmatch(r"([-\w]+)_data_d4rl\.npz", name):
        parent = path.absolute().parent.name
        return (parent if parent in ENVIRONMENTS else None), found[1]
    for environment in ENVIRONMENTS:
        if found := re.fullmatch(rf"{environment}_(\w+)\.npz", name):
            return environment, found[1]
    return None, None


def quality_of(path: Path) -> str:
    """What the name of a file says of its behaviour policy; `foreign` where it says nothing.

    Args:
        path: of the file.
    """
    return _from_name(path)[1] or "foreign"


def _layout(arrays: Mapping[str, np.ndarray], path: Path) -> str:
    environment, quality = _from_name(path)
    named = {
        True: f", named as <environment>/{quality}_data_d4rl.npz",
        False: f", named as {environment}_{quality}.npz" if environment else "",
    }[path.name.endswith("_data_d4rl.npz")]
    if "metadata" in arrays:
        return f"a dataset that names its world{named}"
    if "timeouts" in arrays:
        return f"D4RL's arrays with `timeouts`{named}"
    if {"slates", "clicks"} <= set(arrays):
        return f"the published arrays with slates and clicks{named}"
    if set(REQUIRED) <= set(arrays):
        return f"the five published arrays{named}"
    return f"an npz archive{named}"


def _described(name: str, arrays: Mapping[str, np.ndarray]) -> str:
    if name not in arrays:
        return f"{name[:SHOWN_NAME]}: not read"
    return f"{name}: {arrays[name].shape} {arrays[name].dtype if name != 'metadata' else 'text'}"


def _problems(arrays: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Every array that is missing or not as documented."""
    problems = [f"`{name}` is missing." for name in REQUIRED if name not in arrays]
    first = arrays.get("observations", next(iter(arrays.values()), np.empty(0)))
    rows = len(first) if first.ndim else 0
    if not rows:
        return (*problems, "there are no rows.")
    for name, (shape, dtype) in {**REQUIRED, **OPTIONAL}.items():
        if name in arrays:
            try:
                checked_array(arrays[name], (rows, *shape), dtype, f"`{name}`")
            except DatasetError as error:
                problems.append(str(error))
    return tuple(problems)


def _figures(dataset: Dataset, ends: np.ndarray, returns: np.ndarray, box: ActionBox | None) -> tuple[str, ...]:
    lengths = np.diff(ends, prepend=-1)
    finished = bool(last_steps(dataset.arrays)[-1])
    low, high = dataset.actions.min(axis=0), dataset.actions.max(axis=0)
    lines = [
        f"transitions: {len(dataset):,} in {len(ends):,} episodes of {lengths.min():,} to {lengths.max():,} steps"
        + ("" if finished else ", the last one unfinished"),
        f"return: mean {returns.mean():.2f}, deviation {returns.std():.2f}, {returns.min():.1f} to {returns.max():.1f}",
        f"rewards: {dataset.rewards.min():g} to {dataset.rewards.max():g}, "
        + ("whole numbers" if np.array_equal(dataset.rewards, np.round(dataset.rewards)) else "not whole numbers"),
        f"observations: {dataset.observations.min():.3f} to {dataset.observations.max():.3f}",
        f"actions: {low.min():.3f} to {high.max():.3f} in latent units",
    ]
    if box is not None:
        outside = int((np.abs(box.normalise(np.stack([low, high]))) > INSIDE).any(axis=0).sum())
        inside = "all inside the action box" if not outside else f"outside the action box in {outside} of 32 dimensions"
        lines.append(f"actions against the world: {inside}")
    elif max(-low.min(), high.max()) <= 1:
        lines.append(
            "actions against the world: within -1 to 1. They may have been normalised; latent units are larger"
        )
    if dataset.metadata is not None:
        lines.append(f"world: {dataset.metadata.world_fingerprint} ({dataset.metadata.environment})")
    return tuple(lines)


def _duplicates(dataset: Dataset, ends: np.ndarray) -> tuple[str, ...]:
    """How many transitions, and whole episodes, stand in the file more than once, and gaps inside episodes."""
    keys = _row_keys(dataset)
    repeated = len(keys) - len(np.unique(keys))
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(keys)])
    of_episodes = sums[ends + 1] - sums[np.concatenate([[0], ends[:-1] + 1])]
    twice = len(of_episodes) - len(np.unique(of_episodes))
    inside = np.ones(len(dataset), dtype=bool)
    inside[ends] = False
    rows = np.flatnonzero(inside)
    gaps = 0
    for start in range(0, len(rows), HASHED_ROWS):
        part = rows[start : start + HASHED_ROWS]
        gaps += int((dataset.next_observations[part] != dataset.observations[part + 1]).any(axis=1).sum())
    return (
        f"duplicates: {repeated:,} transitions and {twice:,} whole episodes stand in it more than once",
        "episodes: every observation is the next observation of the step before"
        if not gaps
        else f"episodes: {gaps:,} steps are not followed by their next observation, so the rows are not in order",
    )


def _row_keys(dataset: Dataset) -> np.ndarray:
    """A number (N,) uint64 for each transition; equal transitions have equal numbers."""
    rng = np.random.default_rng(0)
    keys = np.zeros(len(dataset), dtype=np.uint64)
    for array in (dataset.observations, dataset.actions, dataset.rewards[:, None]):
        weights = rng.integers(1, 2**63, array.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        for start in range(0, len(array), HASHED_ROWS):
            bits = np.ascontiguousarray(array[start : start + HASHED_ROWS]).view(np.uint32).astype(np.uint64)
            mixed = (bits + np.uint64(1)) * weights
            keys[start : start + HASHED_ROWS] += (mixed ^ (mixed >> np.uint64(29))).sum(axis=1, dtype=np.uint64)
    return keys


def _uses(dataset: Dataset, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    possible = ["training with every algorithm; losses, Q-values and the cloning error", "offline estimates of returns"]
    impossible = []
    if not last_steps(dataset.arrays).any():
        impossible.append("episodes: neither `terminals` nor `timeouts` ends one, so that all rows are one trajectory.")
    if dataset.metadata is not None:
        possible.append("returns, scores and tables, in the world that it names")
    else:
        attach = command_line("dataset", "attach", str(path), "--world", "WORLD")
        impossible.append(f"returns and scores: nothing says in which world it was logged. Bind it: {attach}")
    if dataset.slates is None:
        impossible.append("statistics of the logged slates: there are none in it.")
    return tuple(possible), tuple(impossible)
