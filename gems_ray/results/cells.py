"""The cells of runs, a row each: what they were, how they ended, what they scored.

A column is one `Column` below; with a heading it stands in the table of diagnostics too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import pandas as pd

from gems_ray.experiments.cell_folder import ENDED, RUNNING, CellFolder
from gems_ray.experiments.records import (
    CellDescription,
    CellResult,
    FinalEvaluations,
    References,
    Report,
    ValidationReturns,
)
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.metrics import CLONING_ERROR, Q_ABOVE_BOUND, Q_BOUND, Q_DATASET, Q_POLICY, Q_RANDOM, STEP, TD_ERROR
from gems_ray.results.settings import Value, all_settings, differing, searched_settings, told_defaults
from gems_ray.results.text import visible


@dataclass(frozen=True, slots=True)
class CellRecords:
    """What the run folder says of a cell, at one moment."""

    run: str
    name: str
    status: str
    description: CellDescription
    result: CellResult | None
    validation: ValidationReturns | None
    test: FinalEvaluations | None
    report: Report  # the last one
    settings: dict[str, Value]  # that are known
    defaults: dict[str, Value]  # of the algorithm, as far as the cell tells them


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the cells.

    Args:
        name: in data frames and CSV files.
        value: of a cell, from its records; None where it was not measured.
        heading: in the table of diagnostics, which shows means over seeds; empty for a column that is not shown there.
        form: of the number there.
        note: what stands under that table.
        decimals: of the number in files.
    """

    name: str
    value: Callable[[CellRecords], Any]
    heading: str = ""
    form: str = ".1f"
    note: str = ""
    decimals: int = 3


REPORT_COLUMNS = (
    Column("q_dataset", lambda cell: cell.report.get(Q_DATASET), "Q data"),
    Column("q_policy", lambda cell: cell.report.get(Q_POLICY), "Q policy"),
    Column(
        "q_random",
        lambda cell: cell.report.get(Q_RANDOM),
        "Q random",
        note="Q data, Q policy, Q random: mean value of the dataset's, the policy's and uniform actions.",
    ),
    Column(
        "q_bound",
        lambda cell: cell.report.get(Q_BOUND),
        "bound",
        note="bound: highest discounted return-to-go of the dataset, which no honest Q passes;",
    ),
    Column(
        "q_above_bound",
        lambda cell: cell.report.get(Q_ABOVE_BOUND),
        "above",
        ".0%",
        "above: share of Q beyond it.",
        decimals=4,
    ),
    Column("td_error", lambda cell: cell.report.get(TD_ERROR)),
    Column(
        "cloning_error",
        lambda cell: cell.report.get(CLONING_ERROR),
        "cloning",
        ".3f",
        "cloning: mean squared distance of policy and dataset actions.",
        decimals=5,
    ),
)
TEST_COLUMNS = (
    Column("distinct_items_per_slate", lambda cell: cell.test and cell.test.last.distinct_items_per_slate),
    Column(
        "distinct_slates",
        lambda cell: cell.test and cell.test.last.distinct_slates,
        "slates",
        ".0f",
        "slates: different slates shown to all test users;",
        decimals=0,
    ),
    Column(
        "repeated_slates",
        lambda cell: cell.test and cell.test.last.repeated_slates,
        "repeated",
        ".0%",
        "repeated: share of slates that a user had seen before;",
        decimals=4,
    ),
    Column(
        "catalogue_coverage",
        lambda cell: cell.test and cell.test.last.catalogue_coverage,
        "items",
        ".0%",
        "items: share of the catalogue that was shown.",
        decimals=4,
    ),
    Column("topic_entropy", lambda cell: cell.test and cell.test.last.topic_entropy),
    Column("bored_topics", lambda cell: cell.test and cell.test.last.bored_topics),
)
COLUMNS = (
    Column("environment", lambda cell: cell.description.environment),
    Column("algorithm", lambda cell: cell.description.algorithm),
    Column("seed", lambda cell: cell.description.seed),
    Column("status", lambda cell: cell.status),
    Column("updates", lambda cell: cell.result.updates if cell.result else cell.report.get(STEP, 0), decimals=0),
    Column("last_return", lambda cell: cell.test and cell.test.last.return_mean),
    Column("last_return_se", lambda cell: cell.test and cell.test.last.return_se),
    Column("best_return", lambda cell: cell.test and cell.test.best.return_mean),
    Column("best_return_se", lambda cell: cell.test and cell.test.best.return_se),
    Column("best_updates", lambda cell: cell.result and cell.result.best_updates, decimals=0),
    Column("validation_last", lambda cell: cell.validation and cell.validation.last),
    Column("validation_best", lambda cell: cell.validation and cell.validation.best),
    *TEST_COLUMNS,
    Column("test_users", lambda cell: cell.test and cell.test.last.users, decimals=0),
    Column("dataset", lambda cell: cell.description.dataset.file or cell.description.dataset.quality),
    Column("dataset_fingerprint", lambda cell: cell.result and cell.result.fingerprints.dataset),
    Column("world_fingerprint", lambda cell: cell.result and cell.result.fingerprints.world),
    *REPORT_COLUMNS,
    Column("engine", lambda cell: cell.result and cell.result.engine),
    Column("seconds", lambda cell: cell.result and cell.result.seconds),
    Column("reason", lambda cell: cell.result and cell.result.reason),
    Column("cell", lambda cell: cell.name),
)
DIAGNOSTICS = tuple(column for column in (*REPORT_COLUMNS, *TEST_COLUMNS) if column.heading)
KEYS = ("environment", "algorithm", "seed")


def cells_frame(*runs: RunFolder) -> pd.DataFrame:
    """One row per cell: what it was, how it ended, what it scored.

    Returns are means over the test users; `validation_best` chose the best checkpoint. A setting that is not the same
    in all cells has a column behind `seed`: empty where it is the algorithm's default, unless a search among the runs
    tells what that is. With several runs, the column `run` says which of them a cell is of.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = [cell for name, run in zip(run_names(runs), runs, strict=True) for cell in _read_cells(name, run)]
    frame = _frame(cells).sort_values([*KEYS], ignore_index=True)
    return frame if len(runs) > 1 else frame.drop(columns="run")


def cells_frames(*runs: RunFolder) -> list[pd.DataFrame]:
    """The rows of `cells_frame` for each run apart, all with a column for every setting in which the runs differ.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = [_read_cells(name, run) for name, run in zip(run_names(runs), runs, strict=True)]
    whole = _frame([cell for each in cells for cell in each])
    ends = list(accumulate(map(len, cells)))
    parts = [whole.iloc[end - len(each) : end] for end, each in zip(ends, cells, strict=True)]
    return [part.drop(columns="run").sort_values([*KEYS], ignore_index=True) for part in parts]


def _frame(cells: Sequence[CellRecords]) -> pd.DataFrame:
    """A row for each cell in this order, with its `run`."""
    columns = {column.name: [column.value(cell) for cell in cells] for column in COLUMNS}
    names = list(columns)
    defaults: dict[str, dict[str, Value]] = {}
    for cell in cells:
        defaults.setdefault(cell.description.algorithm, {}).update(cell.defaults)
    settings = differing([defaults[cell.description.algorithm] | cell.settings for cell in cells], [*names, "run"])
    head, tail = names[: names.index("seed") + 1], names[names.index("seed") + 1 :]
    ordered = {**{name: columns[name] for name in head}, **settings, **{name: columns[name] for name in tail}}
    return pd.DataFrame({"run": [cell.run for cell in cells], **ordered})


def setting_columns(cells: pd.DataFrame) -> list[str]:
    """Names of the columns of `cells_frame` that hold settings."""
    names = list(cells.columns)
    return names[names.index("seed") + 1 : names.index("status")]


def rounded(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells with as many decimals as their numbers mean; counts are whole numbers."""
    cells = known_engines(cells)
    whole = cells.round({column.name: column.decimals for column in COLUMNS if column.name in cells})
    counts = [column.name for column in COLUMNS if not column.decimals and column.name in cells]
    return whole.astype(dict.fromkeys(counts, "Int64"))


def known_engines(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the column of the engines where none is recorded, as in the folders of older versions."""
    return frame.drop(columns="engine") if frame["engine"].isna().all() else frame


def run_names(runs: Sequence[RunFolder]) -> list[str]:
    """What each run is called in tables: the name of its folder, or its path where two folders have the same name."""
    names = [visible(run.path.resolve().name) for run in runs]
    return [name if names.count(name) == 1 else visible(str(run.path)) for name, run in zip(names, runs, strict=True)]


def _read_cells(name: str, run: RunFolder) -> list[CellRecords]:
    searched, in_work = searched_settings(run), run.running_cells()
    return [
        _read_cell(name, folder, searched.get(folder.path.name, {}), folder.path.name in in_work)
        for folder in run.cells()
    ]


def _read_cell(run: str, folder: CellFolder, searched: Mapping[str, Any], in_work: bool) -> CellRecords:
    description, result = folder.description, folder.result()
    status = folder.status_by(result)
    return CellRecords(
        run=run,
        name=folder.path.name,
        status=RUNNING if in_work and status not in ENDED else status,
        description=description,
        result=result,
        validation=result.validation if result else None,
        test=result.test if result else None,
        report=folder.last_report(result),
        settings=all_settings(description, searched),
        defaults=told_defaults(description, searched),
    )


def scores(returns: Any, references: References | None) -> Any:
    """Returns on the scale where random slates have 0 and the behaviour agent has 100; NaN where there is no scale.

    Args:
        returns: a number or (n,), clicks per episode.
        references: of the environment.
    """
    if references is None or references.behavior is None:
        return np.full_like(returns, math.nan, dtype=float)
    low, high = references.random.return_mean, references.behavior.return_mean
    return 100 * (returns - low) / (high - low if high != low else math.nan)
