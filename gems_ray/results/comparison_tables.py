"""The comparison of algorithms, and of settings, as tables that people read."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gems_ray.experiments.records import References
from gems_ray.results.cells import scores
from gems_ray.results.comparison import BEST, CHECKPOINTS, Comparison
from gems_ray.results.numbers import fixed, interval, p_value, spread
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


def comparison_tables(comparison: Comparison, described: Sequence[str]) -> list[TextTable]:
    """The comparison of one or many runs: last and best apart, all environments together, and where it comes from.

    Args:
        comparison: of the runs.
        described: what stands under the tables, of `facts`.
    """
    compared, overall = comparison.compared, comparison.overall
    sources = TextTable("Where the numbers come from", (), (), notes=described)
    if compared.empty or compared["mean"].isna().all():
        return [TextTable("Comparison", (), (), notes=[NOTHING]), sources]
    tables = [_by_environment(compared, comparison.references, kind) for kind in CHECKPOINTS]
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
                rows.append([*words, fixed(played.return_mean), fixed(score, 0), "", "", "", "", "", ""])
        for row in group.to_dict("records"):
            words = [row["environment"], row["algorithm"], *([row["settings"]] if has_settings else [])]
            rows.append(
                [
                    *words,
                    spread(row["mean"], row["std"]),
                    fixed(row["score"], 0),
                    fixed(row["iqm"]),
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
            fixed(row["mean"]),
            interval(row["mean_low"], row["mean_high"]),
            fixed(row["iqm"]),
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


def _share(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def _seeds(row: Mapping[Any, Any]) -> str:
    """How many seeds have a return, of how many that were begun."""
    cells = len(str(row["cells"]).split())
    return f"{row['seeds']} of {cells}" if row["seeds"] < cells else str(row["seeds"])
