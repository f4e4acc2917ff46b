"""The result table of a run: per environment and algorithm, mean and deviation over seeds of the test return."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from gems_ray.experiments.run_folder import FINISHED, CellFolder, RunFolder
from gems_ray.files import write_text_atomically

REFERENCES = ("random", "oracle", "behavior")  # rows that no training made, weakest first


def cells_frame(run: RunFolder) -> pd.DataFrame:
    """One row per experiment: what it was, how it ended, what it scored.

    Returns are means over the test users; `validation_best` chose the best checkpoint. Empty where there is none.
    """
    rows = [_cell_row(cell) for cell in run.cells()]
    order = ["environment", "algorithm", "seed"]
    return pd.DataFrame(rows).sort_values(order, ignore_index=True)


def result_frame(run: RunFolder, cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per environment and algorithm, and the reference policies on the same test users.

    `score` is 0 for random slates and 100 for the behaviour agent; deviations are over seeds.
    """
    cells = cells_frame(run) if cells is None else cells
    rows: list[dict[str, Any]] = []
    for environment in cells["environment"].unique():
        here = cells[cells["environment"] == environment]
        references = run.references(environment)
        for name in REFERENCES if references else ():
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
            done = group[group["status"] == FINISHED]
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
                }
            )
        for row in rows[-len(here["algorithm"].unique()) - (len(REFERENCES) if references else 0) :]:
            for kind in ("last", "best"):
                row[f"{kind}_score"] = _score(row[f"{kind}_mean"], references)
    columns = ["environment", "algorithm"]
    columns += [f"{kind}_{value}" for kind in ("last", "best") for value in ("mean", "std", "score")]
    return pd.DataFrame(rows, columns=[*columns, "seeds", "users"])


def export(run: RunFolder, folder: Path) -> list[Path]:
    """Writes table.csv, table.md and cells.csv; returns their paths."""
    cells = cells_frame(run)
    table = result_frame(run, cells)
    texts = {
        "table.csv": table.round(3).to_csv(index=False),
        "table.md": to_markdown(table),
        "cells.csv": cells.to_csv(index=False),
    }
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    return [folder / name for name in texts]


def to_markdown(table: pd.DataFrame) -> str:
    """The table as GitHub Markdown."""
    header, rows = _display(table)
    lines = [header, ["---"] * 2 + ["---:"] * (len(header) - 2), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + "\n" + " ".join(notes(table)) + "\n"


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
    description, result = cell.description, cell.result() or {}
    test, validation = result.get("test", {}), result.get("validation", {})
    last, best = test.get("last", {}), test.get("best", {})
    metrics = cell.metrics()
    updates = result.get("updates", int(metrics[-1]["updates"]) if metrics else 0)
    return {
        "environment": description["environment"],
        "algorithm": description["algorithm"],
        "seed": description["seed"],
        "status": cell.status,
        "updates": updates,
        "last_return": last.get("return_mean"),
        "last_return_se": last.get("return_se"),
        "best_return": best.get("return_mean"),
        "best_return_se": best.get("return_se"),
        "best_updates": result.get("best_updates"),
        "validation_last": validation.get("last"),
        "validation_best": validation.get("best"),
        "distinct_items_per_slate": last.get("distinct_items_per_slate"),
        "catalogue_coverage": last.get("catalogue_coverage"),
        "bored_topics": last.get("bored_topics"),
        "test_users": last.get("users"),
        "dataset": description["dataset"]["file"] or description["dataset"]["quality"],
        "dataset_fingerprint": result.get("fingerprints", {}).get("dataset"),
        "world_fingerprint": result.get("fingerprints", {}).get("world"),
        "seconds": result.get("seconds"),
        "reason": result.get("reason"),
        "cell": cell.path.name,
    }


def _score(value: float, references: dict[str, dict[str, float]] | None) -> float:
    if references is None:
        return math.nan
    low, high = references["random"]["return_mean"], references["behavior"]["return_mean"]
    return 100 * (value - low) / (high - low)


def _display(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    header = ["environment", "algorithm", "last", "score", "best", "score", "seeds"]
    rows = []
    for row in table.to_dict("records"):
        cells = [str(row["environment"]), str(row["algorithm"])]
        for kind in ("last", "best"):
            mean, std, score = (row[f"{kind}_{value}"] for value in ("mean", "std", "score"))
            spread = "" if pd.isna(std) else f" ± {std:.1f}"
            cells += ["-" if pd.isna(mean) else f"{mean:.1f}{spread}", "-" if pd.isna(score) else f"{score:.0f}"]
        rows.append([*cells, str(row["seeds"]) if row["algorithm"] not in REFERENCES else ""])
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
    ]
