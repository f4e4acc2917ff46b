"""Scores of the test users: how they are distributed, and what stands beside a high one."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gems_ray.experiments.cell_folder import WITH_RESULT
from gems_ray.results.plots.style import GREY, MOST_GROUPS, empty, finish, group_styles, panels, plain_log_ticks
from gems_ray.results.results import Results
from gems_ray.results.statistics import LEVEL, REPLICATES, resample
from gems_ray.results.text import one_line

NO_SCORES = "No cell has a return of the test users yet, or there are no references to make a score of it."
SCORE = "score (0 = random slates, 100 = behaviour agent)"
TITLES = {"last": "last checkpoint", "best": "best on the validation users"}
WIDE = 10  # ratio from which on an axis is logarithmic
CLONING, DIVERSITY = "cloning_error", "distinct_slates"


def performance_profiles(results: Results) -> Figure:
    """Share of the runs of a group that reach a score or more (Agarwal et al. 2021), last and best checkpoint apart."""
    cells, left_out = _scored(results)
    if cells.empty:
        return empty(NO_SCORES)
    figure, axes = panels(list(TITLES.values()))
    styles = group_styles(sorted(cells["group"].unique()))
    rng = np.random.default_rng(0)
    for axis, kind in zip(axes, TITLES, strict=False):
        scores = cells.dropna(subset=[f"{kind}_score"])
        low, high = min(0.0, scores[f"{kind}_score"].min()), max(105.0, scores[f"{kind}_score"].max() * 1.05)
        limits = np.linspace(low, high, 400)
        for group, here in scores.groupby("group", sort=True):
            strata = [part.to_numpy(dtype=float) for _, part in here.groupby("environment")[f"{kind}_score"]]
            style, values = styles[str(group)], np.concatenate(strata)
            axis.plot(
                limits, _share(values, limits), color=style.color, linestyle=style.dashes, label=one_line(str(group))
            )
            if min(map(len, strata)) > 1:
                drawn = np.concatenate(resample(strata, rng, REPLICATES // 4), axis=1)
                shares = np.array([_share(sample, limits) for sample in drawn])
                ends = np.quantile(shares, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
                axis.fill_between(limits, ends[0], ends[1], color=style.color, alpha=0.12, linewidth=0, step="post")
        axis.set_xlabel(SCORE, fontsize=8)
        axis.set_ylim(-0.02, 1.02)
    axes[0].set_ylabel("share of runs with this score or more")
    note = "band: 95% pointwise, of resamples of the seeds within their environments; too narrow for few seeds"
    return finish(figure, f"{note}.{left_out}", axes)


def score_distributions(results: Results) -> Figure:
    """The score of every run as a point, with the mean of each group, by environment."""
    cells, left_out = _scored(results)
    if cells.empty:
        return empty(NO_SCORES)
    environments = sorted(cells["environment"].unique())
    groups = sorted(cells["group"].unique())
    styles = group_styles(groups)
    figure, axes = panels(environments, height=1.4 + 0.35 * len(groups))
    for axis, environment in zip(axes, environments, strict=False):
        here = cells[cells["environment"] == environment]
        for place, group in enumerate(groups):
            values = here.loc[here["group"] == group, "last_score"].to_numpy(dtype=float)
            spread = np.linspace(-0.22, 0.22, len(values)) if len(values) > 1 else np.zeros(len(values))
            style = styles[group]
            axis.plot(
                values, place + spread, style.marker, color=style.color, markersize=4, alpha=0.75, linestyle="none"
            )
            if len(values):
                axis.plot([values.mean()] * 2, [place - 0.35, place + 0.35], color=style.color, linewidth=2.2)
        axis.axvline(100, color=GREY, linestyle="-.", linewidth=1)
        axis.set_yticks(range(len(groups)), list(map(one_line, groups)))
        axis.invert_yaxis()
        axis.set_xlabel(SCORE, fontsize=7)
    note = "point: a seed, last checkpoint; line: mean of the seeds; dash-dotted: behaviour agent"
    return finish(figure, f"{note}.{left_out}", axes)


def cloning_against_return(results: Results) -> Figure:
    """How far a policy is from the logged actions, against its return: a point for every cell."""
    return _trade_off(results, CLONING, "cloning error (squared distance from logged actions)")


def diversity_against_return(results: Results) -> Figure:
    """How many different slates a policy shows, against its return: a point for every cell."""
    return _trade_off(results, DIVERSITY, "different slates shown to all test users")


def _trade_off(results: Results, column: str, label: str) -> Figure:
    tested = results.tested[results.tested["status"].isin(WITH_RESULT)]
    cells, left_out = _best_groups(tested.dropna(subset=[column, "last_return"]))
    if cells.empty:
        return empty("No cell has both a return of the test users and this diagnostic yet.")
    environments = sorted(cells["environment"].unique())
    figure, axes = panels(environments)
    styles = group_styles(sorted(cells["group"].unique()))
    for axis, environment in zip(axes, environments, strict=False):
        for group, here in cells[cells["environment"] == environment].groupby("group", sort=True):
            style = styles[str(group)]
            axis.plot(
                here[column].astype(float),
                here["last_return"].astype(float),
                style.marker,
                color=style.color,
                alpha=0.8,
                label=one_line(group),
            )
        known = results.references.get(environment)
        if known and known.behavior:
            axis.axhline(known.behavior.return_mean, color=GREY, linestyle="-.", linewidth=1, label="behavior")
        values = cells[column].astype(float)
        if values.min() > 0 and values.max() > WIDE * values.min():
            axis.set_xscale("log")
            plain_log_ticks(axis)
        axis.set_xlabel(label, fontsize=8)
    axes[0].set_ylabel("return of the test users")
    return finish(figure, f"point: a seed, last checkpoint.{left_out}", axes)


def _share(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Share of the values (n,) that reach each of the limits (L,)."""
    return 1 - np.searchsorted(np.sort(values), limits, side="left") / len(values)


def _scored(results: Results) -> tuple[pd.DataFrame, str]:
    cells = results.tested[results.tested["status"].isin(WITH_RESULT)].dropna(subset=["last_score"])
    return _best_groups(cells)


def _best_groups(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    means = cells.groupby("group")["last_return"].mean().sort_values(ascending=False)
    if len(means) <= MOST_GROUPS:
        return cells, ""
    return cells[cells["group"].isin(means.index[:MOST_GROUPS])], f" The best {MOST_GROUPS} of {len(means)} are shown."
