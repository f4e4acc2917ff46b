"""What stands under every table: where its numbers come from, and which cells are missing in it."""

import contextlib
from collections.abc import Iterable, Sequence

import pandas as pd

from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import FAILED, FINISHED
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.cells import run_names

LISTED = 20  # names of cells in a note
PACKAGES = ("python", "numpy", "torch", "ray", "optuna")


def facts(runs: Sequence[RunFolder], cells: pd.DataFrame) -> list[str]:
    """Seeds, users, updates, versions, datasets, and the cells without a result, a sentence each.

    Args:
        runs: that the numbers come from.
        cells: of `cells_frame`.
    """
    return [
        *_counts(cells),
        *_settings(runs, cells),
        *_data(runs, cells),
        *(line for name, run in zip(run_names(runs), runs, strict=True) for line in _versions(name, run)),
        *_gaps(runs, cells),
    ]


def _counts(cells: pd.DataFrame) -> list[str]:
    counts = cells["status"].value_counts().sort_index()
    states = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [f"Cells: {len(cells):,}" + (f" ({states})." if states else ".")]
    if again := int(cells["cell"].duplicated().sum()):
        lines.append(f"Cells that stand in several runs and count once in comparisons: {again:,}.")
    return lines


def _settings(runs: Sequence[RunFolder], cells: pd.DataFrame) -> list[str]:
    experiments = [run.experiment() for run in runs]
    validation = {experiment.evaluation.validation_users for experiment in experiments}
    planned = {experiment.training.max_timesteps for experiment in experiments}
    users = cells["test_users"].dropna().astype(int)
    return [
        f"Seeds: {_numbers(cells['seed'])}. Updates: {_numbers(planned)}. "
        f"Test users: {_numbers(users)}. Validation users: {_numbers(validation)}."
    ]


def _data(runs: Sequence[RunFolder], cells: pd.DataFrame) -> list[str]:
    known: dict[tuple[str, str], int] = {}
    for run in runs:
        with contextlib.suppress(RunFolderError):  # damaged: the cells say their fingerprints
            known |= {(name, facts.fingerprint): facts.transitions for name, facts in run.datasets().items()}
    lines = []
    for environment, here in cells.groupby("environment", sort=True):
        seen = here.dropna(subset=["dataset_fingerprint"])
        parts = []
        for (name, fingerprint), group in seen.groupby(["dataset", "dataset_fingerprint"], sort=True):
            transitions = known.get((str(environment), str(fingerprint)))
            size = f", {transitions:,} transitions" if transitions else ""
            worlds = ", ".join(sorted(group["world_fingerprint"].dropna().unique())) or "none"
            parts.append(f"dataset {name}{size}, fingerprint {fingerprint}, world {worlds}")
        lines.append(f"{environment}: {'; '.join(parts) or 'no cell has recorded its dataset'}.")
        if len(parts) > 1:
            lines.append(f"The cells of {environment} saw {len(parts)} different datasets.")
    return lines


def _versions(name: str, run: RunFolder) -> list[str]:
    try:
        machine = run.machine()
    except RunFolderError:  # the numbers do not depend on it
        return [f"Run {name}: the record of its versions is damaged."]
    if machine is None:
        return [f"Run {name}: the versions of its packages were not recorded."]
    packages = [f"{package} {found}" for package in PACKAGES if (found := getattr(machine, package))]
    commit = f" at commit {machine.commit}" if machine.commit else ""
    return [f"Run {name}: gems_ray {machine.gems_ray}{commit}, {', '.join(packages)}, on {machine.platform}."]


def _gaps(runs: Sequence[RunFolder], cells: pd.DataFrame) -> list[str]:
    lines = []
    for status, group in cells.groupby("status", sort=True):
        if status != FINISHED:
            found = group.to_dict("records")
            reasons = [f"{row['cell']} ({row['reason']})" if _is_told(status, row) else row["cell"] for row in found]
            lines.append(f"{str(status).capitalize()}: {_listed(reasons)}.")
    for name, run in zip(run_names(runs), runs, strict=True):
        experiment = run.experiment()
        if experiment.search:
            continue
        there = {folder.path.name for folder in run.cells()}
        if missing := [cell.name for cell in experiment.cells() if cell.name not in there]:
            lines.append(f"No folder in run {name}: {_listed(missing)}.")
    return lines


def _is_told(status: object, row: dict[object, object]) -> bool:
    return status == FAILED and isinstance(row["reason"], str)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _numbers(values: Iterable[int]) -> str:
    """Numbers as a list, in which a range stands for three and more in a row."""
    ordered = sorted(set(map(int, values)))
    parts: list[str] = []
    while ordered:
        length = next((i for i, value in enumerate(ordered) if value != ordered[0] + i), len(ordered))
        length = length if length > 2 else 1
        first, last = (f"{ordered[index]:,}" for index in (0, length - 1))
        parts.append(first if length == 1 else f"{first} to {last}")
        ordered = ordered[length:]
    return ", ".join(parts) or "none"
