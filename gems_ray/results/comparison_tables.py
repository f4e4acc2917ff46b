"""The comparison of algorithms, and of settings, as tables that people read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gems_ray.experiments.records import References
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.cells import cells_frame, scores
from gems_ray.results.comparison import (
    BEST,
    CHECKPOINTS,
    comparison_frame,
    overall_frame,
    references_of,
    tested_cells,
)
from gems_ray.results.facts import facts
from gems_ray.results.text_table import TextTable

TITLES = {"last": "last: the final checkpoints", "best": "best: the checkpoints that the validation users chose"}
NOTES = (
    "return: clicks per episode of the test users, mean ± deviation over seeds; score: 0 = random slates, 100 = "
    "behaviour agent.",
    "IQM: interquartile mean over seeds with its 95% bootstrap interval, widened for few seeds.",
    "p: Welch's test against the best of the environment, after Holm's correction for all pairs of the environment; "
    "above 0.05 the two are not told apart.",
    "best is better: how often a run of the best has a higher return than a run of this row.",
)
OVERALL_NOTES = (
    "The scores of all environments together: 0 = random slates, 100 = behaviour agent.",
    "IQM: interquartile mean over all runs with its 95% interval, from resamples within the environments, widened for "
    "few seeds.",
    "p: permutation test within the environments against the best, after Holm's correction for all pairs.",
    "best is better: how often a run of the best has a higher score than a run of this row, mean over environments, "
    "with its 95% interval.",
)
NOTHING = "No cell has a return of test users yet."


def comparison_tables(runs: Sequence[RunFolder]) -> list[TextTable]:
    """The comparison of one or many runs: last and best apart, all environments together, and where it comes from.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = cells_frame(*runs)
    tested = tested_cells(runs, cells)
    references = references_of(runs, sorted(tested["environment"].unique()))
    return tables_of(tested, references, facts(runs, cells))


def tables_of(
    cells: pd.DataFrame, references: Mapping[str, References | None], described: Sequence[str]
) -> list[TextTable]:
    """The same from frames that were made already.

    Args:
        cells: of `tested_cells`.
        references: by environment.
        described: what stands under the tables, of `facts`.
    """
    compared, overall = comparison_frame(cells, references), overall_frame(cells, references)
    sources = TextTable("Where the numbers come from", (), (), notes=described)
    if compared.empty or compared["mean"].isna().all():
        return [TextTable("Comparison", (), (), notes=[NOTHING]), sources]
    tables = [_by_environment(compared, references, kind) for kind in CHECKPOINTS]
    if not overall.empty:
        tables += [_overall(overall, kind) for kind in CHECKPOINTS]
    return [*tables, sources]


def _by_environment(frame: pd.DataFrame, references: Mapping[str, References | None], kind: str) -> TextTable:
    here = frame[frame["checkpoint"] == kind]
    has_settings = bool((here["settings"] != "").any())
    rows = []
    for environment, group in here.groupby("environment", sort=True):
        known = references.get(str(environment))
        if known:
            for name, played in known.by_policy.items():
                score = float(scores(played.return_mean, known))
                words = [str(environment), name, *([""] if has_settings else [])]
                rows.append([*words, _number(played.return_mean), _number(score, 0), "", "", "", "", "", ""])
        for row in group.to_dict("records"):
            words = [row["environment"], row["algorithm"], *([row["settings"]] if has_settings else [])]
            rows.append(
                [
                    *words,
                    spread(row["mean"], row["std"]),
                    _number(row["score"], 0),
                    _number(row["iqm"]),
                    interval(row["iqm_low"], row["iqm_high"]),
                    p_value(row["p_value"]),
                    _share(row["best_is_better"]),
                    row["verdict"],
                    _seeds(row),
                ]
            )
    words = ["environment", "algorithm", *(["settings"] if has_settings else [])]
    numbers = ["return", "score", "IQM", "95% interval", "p", "best is better", "compared", "seeds"]
    return TextTable(TITLES[kind], [*words, *numbers], rows, len(words), NOTES)


def _overall(frame: pd.DataFrame, kind: str) -> TextTable:
    here = frame[frame["checkpoint"] == kind]
    has_settings = bool((here["settings"] != "").any())
    rows = [
        [
            row["algorithm"],
            *([row["settings"]] if has_settings else []),
            _number(row["mean"]),
            interval(row["mean_low"], row["mean_high"]),
            _number(row["iqm"]),
            interval(row["iqm_low"], row["iqm_high"]),
            p_value(row["p_value"]),
            _share(row["best_is_better"]),
            interval(row["best_is_better_low"], row["best_is_better_high"], 2) if row["verdict"] != BEST else "",
            row["verdict"],
            str(row["seeds"]),
        ]
        for row in here.to_dict("records")
    ]
    words = ["algorithm", *(["settings"] if has_settings else [])]
    numbers = ["mean score", "95%", "IQM", "95%", "p", "best is better", "95%", "compared", "seeds"]
    title = f"All environments together, {TITLES[kind]}"
    return TextTable(title, [*words, *numbers], rows, len(words), OVERALL_NOTES)


def spread(mean: float, std: float, digits: int = 1) -> str:
    """A mean with its deviation: `140.0 ± 40.0`."""
    return _number(mean, digits) + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def interval(low: float, high: float, digits: int = 1) -> str:
    """An interval: `120.5 to 160.0`."""
    return "-" if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"


def p_value(value: float) -> str:
    """A p-value with the digits that matter."""
    return "" if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _number(value: float, digits: int = 1) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _seeds(row: Mapping[Any, Any]) -> str:
    """How many seeds have a return, of how many that were begun."""
    cells = len(str(row["cells"]).split())
    return f"{row['seeds']} of {cells}" if row["seeds"] < cells else str(row["seeds"])
