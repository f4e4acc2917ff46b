"""The content of the report as plain data, which the page embeds and draws."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gems_ray.experiments.cell_folder import FAILED, CellFolder
from gems_ray.experiments.progress import read_progress
from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.experiments.reproduction import VERSION, cell_experiment, run_again
from gems_ray.metrics import CLONING_ERROR, DISTINCT_SLATES, Q_BOUND, Q_POLICY, RETURN_MEAN, STEP, train
from gems_ray.results import search
from gems_ray.results.cells import setting_columns
from gems_ray.results.comparison_tables import comparison_tables
from gems_ray.results.curve_means import POINTS, mean_curves
from gems_ray.results.facts import facts
from gems_ray.results.report.words import summary, warnings
from gems_ray.results.results import Results, group_names
from gems_ray.results.text import visible
from gems_ray.results.text_table import TextTable
from gems_ray.yaml_file import short_text

METRICS = {
    RETURN_MEAN: "return of the validation users, clicks per episode",
    Q_POLICY: "mean Q of the policy's actions",
    CLONING_ERROR: "cloning error, squared distance from logged actions",
    DISTINCT_SLATES: "different slates shown to the validation users",
    train("critic_loss"): "critic loss",
    train("actor_loss"): "actor loss",
}
STRETCHES = 30  # of the curve of a cell that has more reports than can be drawn; two points each
CELL_LOG, FAILED_LOG = 1_000, 6_000  # bytes of the end of a log
NUMBERS = {  # columns of the cells: heading, decimals
    "updates": ("updates", 0),
    "last_return": ("last", 1),
    "best_return": ("best", 1),
    "last_score": ("score", 0),
    "q_policy": ("Q policy", 1),
    "cloning_error": ("cloning", 3),
    "distinct_slates": ("slates", 0),
    "seconds": ("seconds", 0),
}


def content(results: Results) -> dict[str, Any]:
    """Everything that the page shows.

    Args:
        results: of one or many runs.
    """
    cells = _cells(results)
    curves = _curves(results, cells["index"])
    found = {
        "title": f"{', '.join(results.names)}",
        "version": VERSION,
        "summary": summary(results),
        "tables": [_table(table) for table in _tables(results)],
        "curves": curves,
        "cells": {key: value for key, value in cells.items() if key != "index"},
        "runs": [_run(name, run) for name, run in zip(results.names, results.runs, strict=True)],
        "facts": [*facts(results.runs, results.cells), *_group_facts(results)],
    }
    told = warnings(results)  # at the end, when all gaps are known
    found["warnings"] = [{"kind": each.kind, "text": each.text, "cells": list(each.cells)} for each in told]
    return _visible(found)


def embedded(data: Any) -> str:
    """Plain data as JSON that may stand in a script element of HTML, whatever its texts are."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _tables(results: Results) -> list[TextTable]:
    searches = [run for run in results.runs if run.experiment().search]
    found = [table for run in searches for table in search.text_tables(run) if table.rows]
    compared = comparison_tables(results.comparison, [])
    return [*(table for table in compared if table.header), *found]


def _group_facts(results: Results) -> list[str]:
    """The settings of the groups whose names do not say them."""
    names = group_names(results.tested) if len(results.tested) else {}
    return [f"{name}: {settings}." for (_, settings), name in names.items() if settings and settings not in name]


def _table(table: TextTable) -> dict[str, Any]:
    kept = [i for i in range(len(table.header)) if i < table.left or any(row[i] not in ("", "-") for row in table.rows)]
    return {
        "title": table.title,
        "header": [table.header[index] for index in kept],
        "left": table.left,
        "rows": [[row[index] for index in kept] for row in table.rows],
        "notes": list(table.notes),
    }


def _run(name: str, run: ReadableRun) -> dict[str, Any]:
    return {
        "name": name,
        "state": read_progress(run).summary(),
        "again": run_again(run),
        "experiment": (run.path / "experiment.yaml").read_text(encoding="utf-8", errors="replace"),
    }


def _cells(results: Results) -> dict[str, Any]:
    """The rows of the table of cells, and what stands behind each."""
    frame = results.scored
    settings = setting_columns(frame)
    runs = dict(zip(results.names, results.runs, strict=True))
    experiments = {name: run.experiment() for name, run in runs.items()}
    several = len(runs) > 1
    texts: dict[str, int] = {}
    rows: list[list[Any]] = []
    details: list[dict[str, Any]] = []
    index: dict[tuple[str, str], int] = {}
    for row in frame.to_dict("records"):
        key = (row["run"], row["cell"])
        folder = runs[row["run"]].cell(row["cell"])
        head, body = cell_experiment(folder.description, experiments[row["run"]])
        index[key] = len(rows)
        words = [row["environment"], row["algorithm"], row["seed"], row["status"]]
        tried = [None if pd.isna(row[name]) else short_text(row[name]) for name in settings]
        numbers = [_number(row[name], digits) for name, (_, digits) in NUMBERS.items()]
        rows.append([*([row["run"]] if several else []), *words, *tried, *numbers])
        details.append(
            {
                "cell": row["cell"],
                "reason": row["reason"] if isinstance(row["reason"], str) else "",
                "head": head,
                "body": texts.setdefault(body, len(texts)),
                "log": log_end(folder, FAILED_LOG if row["status"] == FAILED else CELL_LOG),
            }
        )
    header = [*(["run"] if several else []), "environment", "algorithm", "seed", "status", *settings]
    return {
        "header": [*header, *(heading for heading, _ in NUMBERS.values())],
        "words": len(header),
        "choices": [*(["run"] if several else []), "environment", "algorithm", "status"],
        "rows": rows,
        "details": details,
        "bodies": list(texts),
        "index": index,
    }


def log_end(folder: CellFolder, size: int) -> str:
    """The last lines of the log of a cell.

    Args:
        folder: of the cell.
        size: bytes at most.
    """
    path: Path = folder.log
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, 2) - size)
            file.seek(begin)
            text = file.read()
    except OSError:
        return ""
    whole = text.partition(b"\n")[2] if begin else text
    return whole.decode("utf-8", errors="replace").rstrip("\n")


def _curves(results: Results, index: dict[tuple[str, str], int]) -> dict[str, Any]:
    """Means over seeds, and the curve of each cell, by metric."""
    groups = sorted(results.shown["group"].unique())
    environments = sorted(results.shown["environment"].unique())
    found: dict[str, Any] = {"groups": groups, "environments": environments, "metrics": [], "note": ""}
    thinned = 0
    for metric, label in METRICS.items():
        curves = results.group_curves(metric)
        if curves.empty:
            continue
        means = []
        for (environment, group), mean in mean_curves(curves, metric).groupby(["environment", "group"], sort=True):
            means.append(
                {
                    "environment": environments.index(environment),
                    "group": groups.index(group),
                    "x": mean[STEP].astype(int).tolist(),
                    "mean": _rounded(mean["mean"]),
                    "low": _rounded(mean["low"]),
                    "high": _rounded(mean["high"]),
                    "seeds": mean["seeds"].tolist(),
                }
            )
        cells = []
        for (run, cell), curve in curves.groupby(["run", "cell"], sort=False):
            x, y = curve[STEP].to_numpy(), curve[metric].to_numpy()
            kept = lowest_and_highest(y)
            thinned = max(thinned, len(y) if len(kept) < len(y) else 0)
            place = (environments.index(curve["environment"].iloc[0]), groups.index(curve["group"].iloc[0]))
            cells.append([index[str(run), str(cell)], *place, x[kept].astype(int).tolist(), _rounded(y[kept])])
        found["metrics"].append({"key": metric, "label": label, "means": means, "cells": cells})
    if thinned:
        found["note"] = (
            f"Cells have up to {thinned:,} reports, of which not all are drawn. The mean of a group has at most "
            f"{POINTS} points, each the mean of the reports of a stretch of updates. The curve of a cell has "
            f"{STRETCHES} stretches with the lowest and the highest report of each, so that no peak is lost. The "
            "tables use all reports."
        )
    found["references"] = [
        {} if (known := results.references.get(name)) is None else _references(known) for name in environments
    ]
    bounds = results.group_curves(Q_BOUND)
    found["bounds"] = [
        sorted(set(_rounded(bounds.loc[bounds["environment"] == name, Q_BOUND].drop_duplicates())))
        if len(bounds)
        else []
        for name in environments
    ]
    return found


def _references(known: Any) -> dict[str, float]:
    return {name: round(played.return_mean, 1) for name, played in known.by_policy.items()}


def lowest_and_highest(values: np.ndarray, stretches: int = STRETCHES) -> np.ndarray:
    """Indices of the first, the last, and in every stretch the lowest and the highest of the values (n,).

    Args:
        values: in the order of the updates.
        stretches: of equal length.
    Returns:
        all indices where there are not more values than would be kept.
    """
    if len(values) <= 2 * stretches + 2:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), stretches + 1).astype(int)
    kept = {0, len(values) - 1}
    for start, end in pairwise(edges):
        kept |= {start + int(values[start:end].argmin()), start + int(values[start:end].argmax())}
    return np.array(sorted(kept))


def _rounded(values: Any) -> list[float | None]:
    """Numbers with five digits: more cannot be seen."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in np.asarray(values, dtype=float)]


def _number(value: Any, digits: int) -> float | None:
    return None if value is None or pd.isna(value) else round(float(value), digits) if digits else round(float(value))


def _visible(data: Any) -> Any:
    """The same data with the control characters of all texts written out as codes."""
    if isinstance(data, str):
        return visible(data)
    if isinstance(data, dict):
        return {visible(str(key)): _visible(value) for key, value in data.items()}
    if isinstance(data, Sequence):
        return data if data and isinstance(data[0], int | float) else [_visible(value) for value in data]
    return data
