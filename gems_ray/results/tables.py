"""The result table of a run: per environment and algorithm, mean and deviation over seeds of the test return."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import DIVERGED, WITH_RESULT
from gems_ray.experiments.records import REFERENCE_POLICIES
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.files import write_text_atomically
from gems_ray.results.cells import DIAGNOSTICS, cells_frame, known_engines, rounded, scores
from gems_ray.results.facts import facts
from gems_ray.results.numbers import fixed, spread
from gems_ray.results.text import escape_markdown
from gems_ray.results.text_table import TextTable, draw, markdown_table

LOGGED = "logged"  # the episodes of the dataset: what the policy behind the data reached, on users of its own
UNTRAINED = (*REFERENCE_POLICIES, LOGGED)
DIAGNOSTICS_NOTES = ("Means over seeds at the last checkpoint.", *(c.note for c in DIAGNOSTICS if c.note))


def result_frame(run: RunFolder, cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per environment and algorithm, the reference policies on the same test users, and the logged episodes.

    `score` is 0 for random slates and 100 for the behaviour agent; deviations are over seeds.
    """
    cells = cells_frame(run) if cells is None else cells
    rows: list[dict[str, Any]] = []
    logged = _logged_returns(run)
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
        if references and environment in logged:
            value = logged[environment]
            row = {"environment": environment, "algorithm": LOGGED, "last_mean": value, "best_mean": value}
            rows.append({**row, "seeds": 0})
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
                row[f"{kind}_score"] = float(scores(row[f"{kind}_mean"], references))
    columns = ["environment", "algorithm"]
    columns += [f"{kind}_{value}" for kind in ("last", "best") for value in ("mean", "std", "score")]
    return pd.DataFrame(
        rows, columns=[*columns, "seeds", "users", "diverged", "engine", *(column.name for column in DIAGNOSTICS)]
    )


def _logged_returns(run: RunFolder) -> dict[str, float]:
    """Mean return of the logged episodes of every environment; without those that an older version recorded."""
    try:
        datasets = run.datasets()
    except RunFolderError:  # damaged: the table does without them
        return {}
    return {name: known.logged_return for name, known in datasets.items() if known.logged_return is not None}


def export(run: RunFolder, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and cells.csv; returns their paths."""
    cells = cells_frame(run)
    table = result_frame(run, cells)
    texts = {
        "table.csv": known_engines(table).round(3).to_csv(index=False),
        "table.md": to_markdown(table, facts([run], cells)),
    }
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [*(folder / name for name in texts), export_cells(run, folder, cells)]


def export_cells(run: RunFolder, folder: Path, cells: pd.DataFrame | None = None) -> Path:
    """Writes cells.csv; returns its path."""
    cells = cells_frame(run) if cells is None else cells
    write_text_atomically(folder / "cells.csv", rounded(cells).to_csv(index=False))
    return folder / "cells.csv"


def to_markdown(table: pd.DataFrame, described: Sequence[str] = ()) -> str:
    """The table and the diagnostics as GitHub Markdown.

    Args:
        table: of `result_frame`.
        described: where the numbers come from, of `facts`.
    """
    parts = [markdown_table(*_display(table)), escape_markdown(" ".join(notes(table))) + "\n"]
    header, rows = _display_diagnostics(table)
    if rows:
        parts += [
            markdown_table(header, rows),
            escape_markdown(" ".join([*DIAGNOSTICS_NOTES, *_engines(table)])) + "\n",
        ]
    return "\n".join([*parts, *markdown_facts(described)])


def markdown_facts(described: Sequence[str]) -> list[str]:
    """What stands at the end of a page of Markdown."""
    return ["".join(f"- {escape_markdown(line)}\n" for line in described)] if described else []


def text_tables(table: pd.DataFrame) -> list[TextTable]:
    """The table and the diagnostics as people read them."""
    shown = [TextTable("Result", *_display(table), notes=notes(table))]
    header, rows = _display_diagnostics(table)
    return (
        [*shown, TextTable("Diagnostics", header, rows, notes=[*DIAGNOSTICS_NOTES, *_engines(table)])]
        if rows
        else shown
    )


def to_rich(table: pd.DataFrame, alike: Container[tuple[str, str, str]] = ()) -> Table:
    """The table for a terminal of 80 columns.

    Args:
        table: of `result_frame`.
        alike: environment, algorithm and checkpoint of what cannot be told apart from the best; such a mean is marked.
    """
    header, rows = _display(table)
    marked = [
        [f"{cell}{_mark(row, CHECKPOINT_COLUMNS[index], alike)}" if index in CHECKPOINT_COLUMNS else cell
         for index, cell in enumerate(row)]
        for row in rows
    ]  # fmt: skip
    return draw(TextTable("", header, marked), folded=("algorithm",))


CHECKPOINT_COLUMNS = {2: "last", 4: "best"}


def _mark(row: Sequence[str], checkpoint: str, alike: Container[tuple[str, str, str]]) -> str:
    if not alike:
        return ""
    return " ≈" if (row[0], row[1], checkpoint) in alike else "  "


def _display(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    header = ["environment", "algorithm", "last", "score", "best", "score", "seeds"]
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row["environment"]), str(row["algorithm"])]
        for kind in ("last", "best"):
            mean, std, score = (row[f"{kind}_{value}"] for value in ("mean", "std", "score"))
            cells += [spread(mean, std), fixed(score, 0)]
        rows.append([*cells, str(row["seeds"]) if row["algorithm"] not in UNTRAINED else ""])
    return header, rows


def _display_diagnostics(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    header = ["environment", "algorithm", *(column.heading for column in DIAGNOSTICS)]
    trained = table[~table["algorithm"].isin(UNTRAINED) & (table["seeds"] > 0)]
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
        *(["logged: mean of the episodes in the dataset."] if (table["algorithm"] == LOGGED).any() else []),
        *_divergence(table),
    ]


def _engines(table: pd.DataFrame) -> list[str]:
    engines = sorted({name for names in table["engine"].dropna() for name in names.split(", ")})
    return [f"Engine of the updates: {', '.join(engines)}."] if engines else []


def _divergence(table: pd.DataFrame) -> list[str]:
    rows = table[table["diverged"] > 0].to_dict("records")
    return [
        f"diverged: {row['diverged']:.0f} of {row['seeds']} {row['algorithm']} in {row['environment']}." for row in rows
    ]
