"""The result table of a run: per environment and algorithm, mean and deviation over seeds of the test return."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from gems_ray.experiments.cell_folder import DIVERGED, WITH_RESULT, CellFolder
from gems_ray.experiments.run_folder import REFERENCE_POLICIES, RunFolder
from gems_ray.files import write_text_atomically
from gems_ray.metrics import CLONING_ERROR, Q_ABOVE_BOUND, Q_BOUND, Q_DATASET, Q_POLICY, Q_RANDOM, STEP, TD_ERROR

# Column of a cell by the metric of its last report, and by the entry of its last test.
FROM_REPORT = {
    "q_dataset": Q_DATASET,
    "q_policy": Q_POLICY,
    "q_random": Q_RANDOM,
    "q_bound": Q_BOUND,
    "q_above_bound": Q_ABOVE_BOUND,
    "td_error": TD_ERROR,
    "cloning_error": CLONING_ERROR,
}
FROM_TEST = (
    "distinct_items_per_slate",
    "distinct_slates",
    "repeated_slates",
    "catalogue_coverage",
    "topic_entropy",
    "bored_topics",
)
DIAGNOSTICS = {  # shown name and format of what the second table shows, from the last checkpoint
    "q_dataset": ("Q data", ".1f"),
    "q_policy": ("Q policy", ".1f"),
    "q_random": ("Q random", ".1f"),
    "q_bound": ("bound", ".1f"),
    "q_above_bound": ("above", ".0%"),
    "cloning_error": ("cloning", ".3f"),
    "distinct_slates": ("slates", ".0f"),
    "repeated_slates": ("repeated", ".0%"),
    "catalogue_coverage": ("items", ".0%"),
}


def cells_frame(run: RunFolder) -> pd.DataFrame:
    """One row per experiment: what it was, how it ended, what it scored.

    Returns are means over the test users; `validation_best` chose the best checkpoint. Empty where there is none.
    """
    rows = [_cell_row(cell) for cell in run.cells()]
    order = ["environment", "algorithm", "seed"]
    return pd.DataFrame(rows, columns=None if rows else [*order, "status"]).sort_values(order, ignore_index=True)


def result_frame(run: RunFolder, cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per environment and algorithm, and the reference policies on the same test users.

    `score` is 0 for random slates and 100 for the behaviour agent; deviations are over seeds.
    """
    cells = cells_frame(run) if cells is None else cells
    rows: list[dict[str, Any]] = []
    for environment in cells["environment"].unique():
        here = cells[cells["environment"] == environment]
        references = run.references(environment)
        for name in REFERENCE_POLICIES if references else ():
            value = references[name]["return_mean"]  # type: ignore[index]
            rows.append(
                {
                    "environment": environment,
                    "algorithm": name,
                    "last_mean": value,
                    "best_mean": value,
                    "seeds": 0,
                    "users": references[name]["users"],  # type: ignore[index]
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
                    **{name: done[name].astype(float).mean() for name in DIAGNOSTICS},
                }
            )
        for row in rows[-len(here["algorithm"].unique()) - (len(REFERENCE_POLICIES) if references else 0) :]:
            for kind in ("last", "best"):
                row[f"{kind}_score"] = _score(row[f"{kind}_mean"], references)
    columns = ["environment", "algorithm"]
    columns += [f"{kind}_{value}" for kind in ("last", "best") for value in ("mean", "std", "score")]
    return pd.DataFrame(rows, columns=[*columns, "seeds", "users", "diverged", *DIAGNOSTICS])


def export(run: RunFolder, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and cells.csv; returns their paths."""
    table = result_frame(run)
    texts = {"table.csv": table.round(3).to_csv(index=False), "table.md": to_markdown(table)}
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [*(folder / name for name in texts), export_cells(run, folder)]


def export_cells(run: RunFolder, folder: Path) -> Path:
    """Writes cells.csv; returns its path."""
    write_text_atomically(folder / "cells.csv", cells_frame(run).to_csv(index=False))
    return folder / "cells.csv"


def to_markdown(table: pd.DataFrame) -> str:
    """The table and the diagnostics as GitHub Markdown."""
    parts = [markdown_table(*_display(table)), " ".join(notes(table)) + "\n"]
    header, rows = _display_diagnostics(table)
    if rows:
        parts += [markdown_table(header, rows), " ".join(DIAGNOSTIC_NOTES) + "\n"]
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
        drawn.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    environment = None
    for row in rows:
        if environment not in (None, row[0]):
            drawn.add_section()
        drawn.add_row(row[0] if row[0] != environment else "", *row[1:])
        environment = row[0]
    return drawn


def _cell_row(cell: CellFolder) -> dict[str, Any]:
    description, ended = cell.description, cell.result()
    status, result = cell.status_by(ended), ended or {}  # of the same moment
    test, validation = result.get("test", {}), result.get("validation", {})
    last, best = test.get("last", {}), test.get("best", {})
    reports = cell.metrics()
    final = result.get("report") or (reports[-1] if reports else {})
    updates = result.get("updates", int(final.get(STEP, 0)))
    return {
        "environment": description["environment"],
        "algorithm": description["algorithm"],
        "seed": description["seed"],
        "status": status,
        "updates": updates,
        "last_return": last.get("return_mean"),
        "last_return_se": last.get("return_se"),
        "best_return": best.get("return_mean"),
        "best_return_se": best.get("return_se"),
        "best_updates": result.get("best_updates"),
        "validation_last": validation.get("last"),
        "validation_best": validation.get("best"),
        **{name: last.get(name) for name in FROM_TEST},
        "test_users": last.get("users"),
        "dataset": description["dataset"]["file"] or description["dataset"]["quality"],
        "dataset_fingerprint": result.get("fingerprints", {}).get("dataset"),
        "world_fingerprint": result.get("fingerprints", {}).get("world"),
        **{name: _number(final.get(key)) for name, key in FROM_REPORT.items()},
        "seconds": result.get("seconds"),
        "reason": result.get("reason"),
        "cell": cell.path.name,
    }


def _number(value: str | float | None) -> float | None:
    return None if value in (None, "") else float(value)


def _score(value: float, references: dict[str, dict[str, float]] | None) -> float:
    if references is None:
        return math.nan
    low, high = references["random"]["return_mean"], references["behavior"]["return_mean"]
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
    header = ["environment", "algorithm", *(shown for shown, _ in DIAGNOSTICS.values())]
    trained = table[~table["algorithm"].isin(REFERENCE_POLICIES) & (table["seeds"] > 0)]
    rows = [
        [str(row["environment"]), str(row["algorithm"])]
        + ["-" if pd.isna(row[name]) else format(row[name], form) for name, (_, form) in DIAGNOSTICS.items()]
        for row in trained.to_dict("records")
    ]
    return header, rows


DIAGNOSTIC_NOTES = (
    "Means over seeds at the last checkpoint.",
    "Q data, Q policy, Q random: mean value of the dataset's, the policy's and uniform actions.",
    "bound: highest discounted return-to-go of the dataset, which no honest Q passes; above: share of Q beyond it.",
    "cloning: mean squared distance of policy and dataset actions.",
    "slates: different slates shown to all test users; repeated: share of slates that a user had seen before;",
    "items: share of the catalogue that was shown.",
)


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


def _divergence(table: pd.DataFrame) -> list[str]:
    rows = table[table["diverged"] > 0].to_dict("records")
    return [
        f"diverged: {row['diverged']:.0f} of {row['seeds']} {row['algorithm']} in {row['environment']}." for row in rows
    ]
