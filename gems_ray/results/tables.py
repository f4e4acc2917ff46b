"""The result table of a run: per environment and algorithm, mean and deviation over seeds of the test return.

A column of the cells is one `Column` below; with a heading it stands in the table of diagnostics too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.table import Table

from gems_ray.experiments.cell_folder import DIVERGED, WITH_RESULT, CellFolder
from gems_ray.experiments.records import (
    REFERENCE_POLICIES,
    CellDescription,
    CellResult,
    FinalEvaluations,
    References,
    Report,
    ValidationReturns,
)
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.files import write_text_atomically
from gems_ray.metrics import CLONING_ERROR, Q_ABOVE_BOUND, Q_BOUND, Q_DATASET, Q_POLICY, Q_RANDOM, STEP, TD_ERROR


@dataclass(frozen=True, slots=True)
class CellRecords:
    """What the run folder says of a cell, at one moment."""

    name: str
    status: str
    description: CellDescription
    result: CellResult | None
    validation: ValidationReturns | None
    test: FinalEvaluations | None
    report: Report  # the last one


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the cells.

    Args:
        name: in data frames and CSV files.
        value: of a cell, from its records; None where it was not measured.
        heading: in the table of diagnostics, which shows means over seeds; empty for a column that is not shown there.
        form: of the number there.
        note: what stands under that table.
    """

    name: str
    value: Callable[[CellRecords], Any]
    heading: str = ""
    form: str = ".1f"
    note: str = ""


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
    ),
    Column("td_error", lambda cell: cell.report.get(TD_ERROR)),
    Column(
        "cloning_error",
        lambda cell: cell.report.get(CLONING_ERROR),
        "cloning",
        ".3f",
        "cloning: mean squared distance of policy and dataset actions.",
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
    ),
    Column(
        "repeated_slates",
        lambda cell: cell.test and cell.test.last.repeated_slates,
        "repeated",
        ".0%",
        "repeated: share of slates that a user had seen before;",
    ),
    Column(
        "catalogue_coverage",
        lambda cell: cell.test and cell.test.last.catalogue_coverage,
        "items",
        ".0%",
        "items: share of the catalogue that was shown.",
    ),
    Column("topic_entropy", lambda cell: cell.test and cell.test.last.topic_entropy),
    Column("bored_topics", lambda cell: cell.test and cell.test.last.bored_topics),
)
COLUMNS = (
    Column("environment", lambda cell: cell.description.environment),
    Column("algorithm", lambda cell: cell.description.algorithm),
    Column("seed", lambda cell: cell.description.seed),
    Column("status", lambda cell: cell.status),
    Column("updates", lambda cell: cell.result.updates if cell.result else cell.report.get(STEP, 0)),
    Column("last_return", lambda cell: cell.test and cell.test.last.return_mean),
    Column("last_return_se", lambda cell: cell.test and cell.test.last.return_se),
    Column("best_return", lambda cell: cell.test and cell.test.best.return_mean),
    Column("best_return_se", lambda cell: cell.test and cell.test.best.return_se),
    Column("best_updates", lambda cell: cell.result and cell.result.best_updates),
    Column("validation_last", lambda cell: cell.validation and cell.validation.last),
    Column("validation_best", lambda cell: cell.validation and cell.validation.best),
    *TEST_COLUMNS,
    Column("test_users", lambda cell: cell.test and cell.test.last.users),
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


def cells_frame(run: RunFolder) -> pd.DataFrame:
    """One row per cell: what it was, how it ended, what it scored.

    Returns are means over the test users; `validation_best` chose the best checkpoint.
    """
    cells = [_read_cell(folder) for folder in run.cells()]
    rows = [{column.name: column.value(cell) for column in COLUMNS} for cell in cells]
    return pd.DataFrame(rows, columns=[column.name for column in COLUMNS]).sort_values([*KEYS], ignore_index=True)


def metrics_frame(run: RunFolder) -> pd.DataFrame:
    """One row per report of a cell: `cell`, `environment`, `algorithm`, `seed`, then the metrics as numbers.

    The metrics have their names in gems_ray/metrics.py; NaN stands where one was not measured.
    """
    rows: list[dict[str, Any]] = []
    for folder in run.cells():
        description = folder.description
        keys = {"cell": folder.path.name, **{key: getattr(description, key) for key in KEYS}}
        rows += [{**keys, **report} for report in folder.metrics()]
    return pd.DataFrame(rows, columns=None if rows else ["cell", *KEYS, STEP])


def _read_cell(folder: CellFolder) -> CellRecords:
    description, result = folder.description, folder.result()
    return CellRecords(
        name=folder.path.name,
        status=folder.status_by(result),
        description=description,
        result=result,
        validation=result.validation if result else None,
        test=result.test if result else None,
        report=folder.last_report(result),
    )


def result_frame(run: RunFolder, cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per environment and algorithm, and the reference policies on the same test users.

    `score` is 0 for random slates and 100 for the behaviour agent; deviations are over seeds.
    """
    cells = cells_frame(run) if cells is None else cells
    rows: list[dict[str, Any]] = []
    for environment in cells["environment"].unique():
        here = cells[cells["environment"] == environment]
        references = run.references(environment)
        before = len(rows)
        for name, played in references.by_policy.items() if references else ():
            value = played.return_mean
            rows.append(
                {
                    "environment": environment,
                    "algorithm": name,
                    "last_mean": value,
                    "best_mean": value,
                    "seeds": 0,
                    "users": played.users,
                }
            )
        for algorithm, group in here.groupby("algorithm", sort=True):
            done = group[group["status"].isin(WITH_RESULT)]
            rows.append(
                {
                    "environment": environment,
                    "algorithm": algorithm,
                    "last_mean": done["last_return"].mean(),
                    "last_std": done["last_return"].std(),
                    "best_mean": done["best_return"].mean(),
                    "best_std": done["best_return"].std(),
                    "seeds": len(done),
                    "users": done["test_users"].max(),
                    "diverged": int((done["status"] == DIVERGED).sum()),
                    "engine": ", ".join(sorted(done["engine"].dropna().unique())) or None,
                    **{column.name: done[column.name].astype(float).mean() for column in DIAGNOSTICS},
                }
            )
        for row in rows[before:]:
            for kind in ("last", "best"):
                row[f"{kind}_score"] = _score(row[f"{kind}_mean"], references)
    columns = ["environment", "algorithm"]
    columns += [f"{kind}_{value}" for kind in ("last", "best") for value in ("mean", "std", "score")]
    return pd.DataFrame(
        rows, columns=[*columns, "seeds", "users", "diverged", "engine", *(column.name for column in DIAGNOSTICS)]
    )


def export(run: RunFolder, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and cells.csv; returns their paths."""
    cells = cells_frame(run)
    table = result_frame(run, cells)
    texts = {"table.csv": _known_engines(table).round(3).to_csv(index=False), "table.md": to_markdown(table)}
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [*(folder / name for name in texts), export_cells(run, folder, cells)]


def export_cells(run: RunFolder, folder: Path, cells: pd.DataFrame | None = None) -> Path:
    """Writes cells.csv; returns its path."""
    cells = cells_frame(run) if cells is None else cells
    write_text_atomically(folder / "cells.csv", _known_engines(cells).to_csv(index=False))
    return folder / "cells.csv"


def to_markdown(table: pd.DataFrame) -> str:
    """The table and the diagnostics as GitHub Markdown."""
    parts = [markdown_table(*_display(table)), " ".join(notes(table)) + "\n"]
    header, rows = _display_diagnostics(table)
    if rows:
        words = ["Means over seeds at the last checkpoint.", *(column.note for column in DIAGNOSTICS if column.note)]
        parts += [markdown_table(header, rows), " ".join([*words, *_engines(table)]) + "\n"]
    return "\n".join(parts)


def markdown_table(header: list[str], rows: list[list[str]], left: int = 2) -> str:
    """A table of GitHub Markdown whose first `left` columns hold words."""
    lines = [header, ["---"] * left + ["---:"] * (len(header) - left), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def to_rich(table: pd.DataFrame) -> Table:
    """The table for a terminal of 80 columns."""
    header, rows = _display(table)
    drawn = Table(box=None, pad_edge=False)
    for index, name in enumerate(header):
        folds = name == "algorithm"  # the only name that may be too long for 80 columns
        justify: Literal["left", "right"] = "left" if index < 2 else "right"
        drawn.add_column(name, justify=justify, no_wrap=not folds, overflow="fold" if folds else "ellipsis")
    environment = None
    for row in rows:
        if environment not in (None, row[0]):
            drawn.add_section()
        drawn.add_row(row[0] if row[0] != environment else "", *row[1:])
        environment = row[0]
    return drawn


def _score(value: float, references: References | None) -> float:
    if references is None:
        return math.nan
    low, high = references.random.return_mean, references.behavior.return_mean
    return 100 * (value - low) / (high - low) if high != low else math.nan


def _display(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    header = ["environment", "algorithm", "last", "score", "best", "score", "seeds"]
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row["environment"]), str(row["algorithm"])]
        for kind in ("last", "best"):
            mean, std, score = (row[f"{kind}_{value}"] for value in ("mean", "std", "score"))
            spread = "" if pd.isna(std) else f" ± {std:.1f}"
            cells += ["-" if pd.isna(mean) else f"{mean:.1f}{spread}", "-" if pd.isna(score) else f"{score:.0f}"]
        rows.append([*cells, str(row["seeds"]) if row["algorithm"] not in REFERENCE_POLICIES else ""])
    return header, rows


def _display_diagnostics(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    header = ["environment", "algorithm", *(column.heading for column in DIAGNOSTICS)]
    trained = table[~table["algorithm"].isin(REFERENCE_POLICIES) & (table["seeds"] > 0)]
    rows = [
        [str(row["environment"]), str(row["algorithm"])]
        + ["-" if pd.isna(row[column.name]) else format(row[column.name], column.form) for column in DIAGNOSTICS]
        for row in trained.to_dict("records")
    ]
    return header, rows


def notes(table: pd.DataFrame) -> list[str]:
    """What the numbers of the table mean, a sentence each."""
    users = table["users"].max()
    if pd.isna(users):
        return ["No returns: the dataset does not say in which world it was collected."]
    return [
        f"Clicks per episode on {int(users)} test users, mean ± deviation over seeds.",
        "last, best: final checkpoint, and best on the validation users.",
        "score: 0 = random slates, 100 = behaviour agent (mean actions).",
        *_divergence(table),
    ]


def _known_engines(frame: pd.DataFrame) -> pd.DataFrame:
    """Without the column of the engines where none is recorded, as in the folders of older versions."""
    return frame.drop(columns="engine") if frame["engine"].isna().all() else frame


def _engines(table: pd.DataFrame) -> list[str]:
    engines = sorted({name for names in table["engine"].dropna() for name in names.split(", ")})
    return [f"Engine of the updates: {', '.join(engines)}."] if engines else []


def _divergence(table: pd.DataFrame) -> list[str]:
    rows = table[table["diverged"] > 0].to_dict("records")
    return [
        f"diverged: {row['diverged']:.0f} of {row['seeds']} {row['algorithm']} in {row['environment']}." for row in rows
    ]
