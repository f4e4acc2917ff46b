"""Algorithms against each other: means with intervals, and which of them cannot be told apart from the best.

A *group* is one algorithm with one choice of settings. Its cells in one environment differ in their seeds alone.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain, combinations
from typing import Any

import numpy as np
import pandas as pd

from gems_ray.experiments.cell_folder import ENDED, PENDING, RUNNING, UNFINISHED, WITH_RESULT
from gems_ray.experiments.records import References
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.cells import cells_frame, cells_frames, scores, setting_columns
from gems_ray.results.settings import distinct_texts
from gems_ray.results.statistics import (
    UNKNOWN,
    Interval,
    Values,
    bootstrap_interval,
    holm,
    improvement_interval,
    interquartile_mean,
    mean_of_strata,
    permutation_test,
    pooled_interquartile_mean,
    probability_of_improvement,
    welch_test,
)

SIGNIFICANT = 0.05  # probability of any false difference among all pairs of a table
CHECKPOINTS = ("last", "best")
STATUSES = (*ENDED, RUNNING, UNFINISHED, PENDING)
BEST, WORSE, ALIKE, UNTOLD, ALONE = "best", "worse", "not told apart", "too few seeds", ""
SEED = 0  # of the resamples: the same folder gives the same table; anew for each number, so that rows do not matter


class Comparison:
    """The comparison of one or many runs at one moment; each part is computed once, when it is first asked for.

    Args:
        runs: that are read.
        cells: their `cells_frame`, if it has been read already.
    Raises:
        RunFolderError: when a part is asked for, a file of a folder is damaged.
    """

    def __init__(self, runs: Sequence[RunFolder], cells: pd.DataFrame | None = None) -> None:
        self.runs = runs
        self.cells = cells_frame(*runs) if cells is None else cells

    @cached_property
    def tested(self) -> pd.DataFrame:
        """The cells that are compared, as `tested_cells` has them."""
        return tested_cells(self.runs, self.cells)

    @cached_property
    def references(self) -> dict[str, References | None]:
        """By environment, what the reference policies reached."""
        return references_of(self.runs, sorted(self.tested["environment"].unique()))

    @cached_property
    def compared(self) -> pd.DataFrame:
        """One row per environment, group and checkpoint, of `comparison_frame`."""
        return comparison_frame(self.tested, self.references)

    @cached_property
    def overall(self) -> pd.DataFrame:
        """One row per group and checkpoint over all environments, of `overall_frame`."""
        return overall_frame(self.tested, self.references)


def tested_cells(runs: Sequence[RunFolder], cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """The cells whose test returns can be compared, with what tells their groups apart in the column `settings`.

    Of a search these are the candidates on fresh seeds: what chose a trial cannot judge it. A cell that stands in
    several runs counts once, with its result where one of them has it.

    Args:
        runs: that are read.
        cells: their `cells_frame`, if it has been read already.
    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = _without_trials(runs, cells_frame(*runs) if cells is None else cells)
    order = cells["status"].isin(WITH_RESULT).sort_values(ascending=False, kind="stable").index
    cells = cells.loc[order].drop_duplicates("cell").sort_index()
    (settings,) = _group_settings(cells)
    return cells.assign(settings=settings).reset_index(drop=True)


def matched_cells(one: RunFolder, other: RunFolder) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of two runs, as `tested_cells` has them; groups with the same `settings` belong together.

    A setting that one of the runs varies for an algorithm tells its groups apart in both of them, by its exact value.
    A setting that neither varies does not, so that two runs can be compared by it.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = [_without_trials([run], frame) for run, frame in zip((one, other), cells_frames(one, other), strict=True)]
    first, second = (frame.assign(settings=texts) for frame, texts in zip(cells, _group_settings(*cells), strict=True))
    return first, second


def comparison_frame(cells: pd.DataFrame, references: Mapping[str, References | None]) -> pd.DataFrame:
    """One row per environment, group and checkpoint.

    Args:
        cells: of `tested_cells`.
        references: by environment, what the reference policies reached.
    Returns:
        `mean`, `std`, `iqm` with `iqm_low` and `iqm_high` (95%), in clicks per episode; `score` of the mean;
        `p_value` of Welch's test against the best of the environment, corrected after Holm for all of its pairs;
        `best_is_better`, how often a run of the best is better than one of this row; `verdict`: best, worse, not told
        apart, too few seeds; `seeds` with a return, `users`, how many cells have which status; `cells`, their names.
    """
    rows: list[dict[str, Any]] = []
    for environment, here in cells.groupby("environment", sort=True):
        groups = list(here.groupby(["algorithm", "settings"], sort=True))
        for checkpoint in CHECKPOINTS:
            returns = [returns_of(group, checkpoint) for _, group in groups]
            against = _against_best([[values] for values in returns], welch=True)
            for (key, group), values, compared in zip(groups, returns, against, strict=True):
                low, high = bootstrap_interval([values], pooled_interquartile_mean, _generator())
                mean = _mean(values)
                rows.append(
                    {
                        "environment": environment,
                        "algorithm": key[0],
                        "settings": key[1],
                        "checkpoint": checkpoint,
                        "mean": mean,
                        "std": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                        "iqm": float(interquartile_mean(values)) if len(values) else math.nan,
                        "iqm_low": low,
                        "iqm_high": high,
                        "score": float(scores(mean, references.get(str(environment)))),
                        **compared,
                        "seeds": len(values),
                        "users": group["test_users"].max(),
                        **{status: int((group["status"] == status).sum()) for status in STATUSES},
                        "cells": " ".join(group["cell"]),
                    }
                )
    return pd.DataFrame(rows)


def overall_frame(cells: pd.DataFrame, references: Mapping[str, References | None]) -> pd.DataFrame:
    """One row per group and checkpoint: the scores of all environments together.

    Only groups with a score in every environment stand here; there is none with a single environment.

    Args:
        cells: of `tested_cells`.
        references: by environment; without them there are no scores.
    Returns:
        `mean` and `iqm` of the scores with 95% intervals from resamples within the environments; `p_value` of a
        permutation test within the environments against the best, corrected after Holm for all pairs;
        `best_is_better` with its interval; `verdict`; `environments`, `seeds` (the fewest in one), `cells`.
    """
    environments = sorted(cells["environment"].unique())
    rows: list[dict[str, Any]] = []
    if len(environments) < 2:
        return pd.DataFrame(rows)
    groups = [
        (key, group, [group[group["environment"] == name] for name in environments])
        for key, group in cells.groupby(["algorithm", "settings"], sort=True)
    ]
    for checkpoint in CHECKPOINTS:
        strata = [
            [
                scores(returns_of(part, checkpoint), references.get(name))
                for name, part in zip(environments, parts, strict=True)
            ]
            for _, _, parts in groups
        ]
        whole = [index for index, each in enumerate(strata) if all(len(s) and not np.isnan(s).any() for s in each)]
        against = _against_best([strata[index] for index in whole], welch=False)
        for index, compared in zip(whole, against, strict=True):
            key, group, _ = groups[index]
            mean = bootstrap_interval(strata[index], mean_of_strata, _generator())
            middle = bootstrap_interval(strata[index], pooled_interquartile_mean, _generator(), pooled=True)
            rows.append(
                {
                    "algorithm": key[0],
                    "settings": key[1],
                    "checkpoint": checkpoint,
                    "mean": float(mean_of_strata(strata[index])),
                    "mean_low": mean.low,
                    "mean_high": mean.high,
                    "iqm": float(pooled_interquartile_mean(strata[index])),
                    "iqm_low": middle.low,
                    "iqm_high": middle.high,
                    **compared,
                    "environments": len(environments),
                    "seeds": min(map(len, strata[index])),
                    "cells": " ".join(group["cell"]),
                }
            )
    return pd.DataFrame(rows)


def alike(compared: pd.DataFrame) -> set[tuple[str, str, str]]:
    """Environment, algorithm and checkpoint of what cannot be told apart from the best, and of that best one.

    Args:
        compared: of `comparison_frame`, of one run.
    """
    rows = [row for row in compared.to_dict("records") if row["verdict"] == ALIKE]
    places = {(row["environment"], row["checkpoint"]) for row in rows}
    rows += [
        row
        for row in compared.to_dict("records")
        if row["verdict"] == BEST and (row["environment"], row["checkpoint"]) in places
    ]
    return {(row["environment"], row["algorithm"], row["checkpoint"]) for row in rows}


def told_apart(compared: pd.DataFrame) -> list[str]:
    """What can be said of the differences in a table, in lines of 80 columns.

    Args:
        compared: of `comparison_frame`.
    """
    verdicts = set(compared["verdict"]) if len(compared) else set()
    lines = []
    if ALIKE in verdicts:
        lines.append("≈: the best, and what cannot be told apart from it (Welch's test, Holm, 5%).")
    if UNTOLD in verdicts:
        lines.append("Too few seeds to tell algorithms apart: two are needed, five are better.")
    return lines


def references_of(runs: Sequence[RunFolder], environments: Sequence[str]) -> dict[str, References | None]:
    """By environment, what the reference policies reached in the first run that knows it."""
    found: dict[str, References | None] = {}
    for name in environments:
        found[name] = next((known for run in runs if (known := run.references(name))), None)
    return found


def _trial_cells(run: RunFolder) -> set[str]:
    """Names of the cells of a search that are not on fresh seeds."""
    if not run.experiment().search:
        return set()
    return run.search_cells() - {name for candidate in run.candidates() or [] for name in candidate.cells}


def _without_trials(runs: Sequence[RunFolder], cells: pd.DataFrame) -> pd.DataFrame:
    trials = {name for run in runs for name in _trial_cells(run)}
    return cells[~cells["cell"].isin(trials)]


def _group_settings(*frames: pd.DataFrame) -> list[list[str]]:
    """What tells the groups of one algorithm apart, as one text for each cell: `alpha 0.5, batch_size 64`.

    Args:
        frames: of cells, with the same columns; a setting counts where it is not the same within one of them.
    Returns:
        the texts for each frame; the same values have the same text in all of them, and different values never do.
    """
    names = setting_columns(frames[0])
    varied: dict[str, set[str]] = {}
    for cells in frames:
        for algorithm, group in cells.groupby("algorithm"):
            different = {name for name in names if len(set(map(repr, group[name]))) > 1}
            varied.setdefault(str(algorithm), set()).update(different)
    texts = {name: distinct_texts(chain.from_iterable(cells[name].dropna() for cells in frames)) for name in names}
    return [
        [
            ", ".join(
                f"{name} {'default' if pd.isna(row[name]) else texts[name][row[name]]}"
                for name in names
                if name in varied[row["algorithm"]]
            )
            for row in cells.to_dict("records")
        ]
        for cells in frames
    ]


def returns_of(group: pd.DataFrame, checkpoint: str) -> Values:
    """Clicks per episode of the test users, one number for each cell that has them.

    Args:
        group: rows of `tested_cells`.
        checkpoint: last or best.
    Returns:
        (n,).
    """
    done = group[group["status"].isin(WITH_RESULT)]
    return done[f"{checkpoint}_return"].dropna().to_numpy(dtype=float)


def _against_best(groups: Sequence[Sequence[Values]], welch: bool) -> list[dict[str, Any]]:
    """For every group, how it compares with the one of the highest mean.

    The best is chosen by the same data, so that the extremes of all pairs meet. Correcting for the pairs with the best
    alone would be too lenient; the correction is for all pairs.

    Args:
        groups: in each the strata, (n,) a piece; all strata have numbers, or there is one.
        welch: Welch's test of the only stratum, in place of permutations within the strata.
    """
    means = [float(np.mean([_mean(stratum) for stratum in strata])) for strata in groups]
    known = [index for index, mean in enumerate(means) if not math.isnan(mean)]
    nothing = {"p_value": math.nan, "best_is_better": math.nan}
    nothing |= {} if welch else {"best_is_better_low": math.nan, "best_is_better_high": math.nan}
    if not known:
        return [{**nothing, "verdict": ALONE} for _ in groups]
    best = max(known, key=lambda index: means[index])
    pairs = list(combinations(known, 2))
    p_values = dict(zip(pairs, holm([_p_value(groups[a], groups[b], welch) for a, b in pairs]), strict=True))
    found = []
    for index, strata in enumerate(groups):
        row: dict[str, Any] = {**nothing, "verdict": ALONE}
        if index == best:
            row["verdict"] = BEST if len(known) > 1 else ALONE
        elif index in known:
            p_value = float(p_values[min(index, best), max(index, best)])
            row["p_value"] = p_value
            row["best_is_better"] = probability_of_improvement(groups[best], strata)
            if not welch:
                interval: Interval = (
                    improvement_interval(groups[best], strata, _generator()) if p_value == p_value else UNKNOWN
                )
                row["best_is_better_low"], row["best_is_better_high"] = interval
            row["verdict"] = UNTOLD if math.isnan(p_value) else WORSE if p_value <= SIGNIFICANT else ALIKE
        found.append(row)
    return found


def _p_value(ours: Sequence[Values], theirs: Sequence[Values], welch: bool) -> float:
    if min(map(len, [*ours, *theirs])) < 2:
        return math.nan
    return welch_test(ours[0], theirs[0]) if welch else permutation_test(ours, theirs, _generator())


def _generator() -> np.random.Generator:
    return np.random.default_rng(SEED)


def _mean(values: Values) -> float:
    return float(values.mean()) if len(values) else math.nan
