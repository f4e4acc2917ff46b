"""Learning curves of groups: the mean over seeds with its interval, at so many points as can be drawn."""

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from gems_ray.metrics import STEP
from gems_ray.results.statistics import LEVEL

POINTS = 100  # of a curve; more cannot be told apart on a screen


def mean_curves(curves: pd.DataFrame, metric: str, points: int = POINTS) -> pd.DataFrame:
    """The mean over seeds of a metric with the 95% interval of Student's t.

    Where the cells of a group have more reports than can be drawn, its updates are divided into stretches of equal
    length: each group has its own, so that a short one keeps its curve beside a long one. Each cell counts with the
    mean of its reports in a stretch, which stands at the end of the stretch. Nothing is smoothed otherwise. A cell that
    ended early is missing in what follows; `seeds` says how many are left.

    Args:
        curves: of `Results.group_curves`.
        metric: a column of it.
        points: stretches at most.
    Returns:
        `environment`, `group`, `updates`, `mean`, `low`, `high`, `seeds`; the ends are NaN for a single seed.
    """
    keys = ["environment", "group", STEP]
    if curves.empty:
        return pd.DataFrame(columns=[*keys, "mean", "low", "high", "seeds"])
    ends = curves.groupby(["environment", "group"])[STEP].transform(stretch_ends, points)
    placed = curves.assign(**{STEP: ends})
    by_cell = placed.groupby([*keys, "run", "cell"], sort=True)[metric].mean()
    found = by_cell.groupby(keys).agg(["mean", "std", "count"]).reset_index()
    seeds = found["count"].to_numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stdtrit(np.maximum(seeds - 1, 1), (1 + LEVEL) / 2) * found["std"].to_numpy() / np.sqrt(seeds)
    mean = found["mean"].to_numpy()
    return found[keys].assign(mean=mean, low=mean - half, high=mean + half, seeds=seeds)


def stretch_ends(updates: pd.Series, points: int = POINTS) -> pd.Series:
    """For every report, the end of the stretch that it is in; the updates themselves where they are few enough.

    Args:
        updates: of the reports of any cells.
        points: stretches at most.
    """
    places = np.unique(updates)
    if len(places) <= points:
        return updates
    ends = np.linspace(places[0], places[-1], points)[1:]
    index = np.searchsorted(ends, updates.to_numpy() - 1e-9)
    return pd.Series(np.round(ends[np.minimum(index, len(ends) - 1)]).astype(int), index=updates.index)
