"""Learning curves: what happens while cells are trained."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from gems_ray.experiments.records import References
from gems_ray.metrics import Q_BOUND, Q_POLICY, RETURN_MEAN, STEP
from gems_ray.results.curve_means import mean_curves
from gems_ray.results.plots.style import GREY, MOST_GROUPS, GroupStyle, empty, finish, group_styles, panels
from gems_ray.results.results import Results
from gems_ray.results.text import one_line

REFERENCE_DASHES = {"random": ":", "oracle": "--", "behavior": "-."}
INTERVAL = "line: mean over seeds; band: 95% interval of the mean (Student's t)"


def learning_curves(results: Results) -> Figure:
    """Return of the validation users against updates, beside behaviour agent, oracle and random slates."""
    curves = mean_curves(results.group_curves(RETURN_MEAN), RETURN_MEAN)
    if curves.empty:
        return empty("No cell has a return yet, or the dataset names no world.")
    curves, left_out = best_groups(curves, results)
    figure, axes = _draw(curves, "return, clicks per episode")
    for axis, environment in zip(axes, curves["environment"].unique(), strict=False):
        _draw_references(axis, results.references.get(environment))
    note = f"{INTERVAL}. Curves: validation users; lines of the references: test users.{left_out}"
    return finish(figure, note, axes)


def q_against_bound(results: Results) -> Figure:
    """Mean Q of the policy's actions against updates, with the most that the rewards can pay."""
    curves = mean_curves(results.group_curves(Q_POLICY), Q_POLICY)
    if curves.empty:
        return empty("No cell has a Q: its algorithm has no critic, or has not begun.")
    curves, left_out = best_groups(curves, results)
    figure, axes = _draw(curves, "mean Q of the policy's actions")
    bounds = results.group_curves(Q_BOUND)
    for axis, environment in zip(axes, curves["environment"].unique(), strict=False):
        here = bounds[bounds["environment"] == environment]
        for index, bound in enumerate(sorted(here[Q_BOUND].round(6).unique())):
            axis.axhline(bound, color="black", linestyle="--", linewidth=1, label=None if index else "bound")
    return finish(figure, f"{INTERVAL}. bound: the most that the rewards of the dataset can pay.{left_out}", axes)


def best_groups(curves: pd.DataFrame, results: Results) -> tuple[pd.DataFrame, str]:
    """The curves of as many groups as there are colours, and what to say of the others."""
    by_group = results.shown.groupby("group")[["validation_last", "last_return"]].mean().max(axis=1)
    groups = list(curves["group"].unique())
    if len(groups) <= MOST_GROUPS:
        return curves, ""
    best = sorted(groups, key=lambda group: -by_group.fillna(float("-inf")).get(group, float("-inf")))[:MOST_GROUPS]
    return curves[curves["group"].isin(best)], f" The best {MOST_GROUPS} of {len(groups)} groups are shown."


def _draw(curves: pd.DataFrame, label: str) -> tuple[Figure, list[Axes]]:
    environments = list(curves["environment"].unique())
    styles = group_styles(sorted(curves["group"].unique()))
    figure, axes = panels(environments)
    for axis, environment in zip(axes, environments, strict=False):
        here = curves[curves["environment"] == environment]
        for group, curve in here.groupby("group", sort=True):
            _draw_curve(axis, curve, str(group), styles[str(group)])
        axis.set_xlabel("updates")
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel(label)
    return figure, axes


def _draw_curve(axis: Axes, curve: pd.DataFrame, group: str, style: GroupStyle) -> None:
    axis.plot(curve[STEP], curve["mean"], color=style.color, linestyle=style.dashes, label=one_line(group), zorder=3)
    axis.plot(curve[STEP].iloc[-1:], curve["mean"].iloc[-1:], color=style.color, marker=style.marker, markersize=4)
    banded = curve.dropna(subset=["low", "high"])
    axis.fill_between(banded[STEP], banded["low"], banded["high"], color=style.color, alpha=0.15, linewidth=0)


def _draw_references(axis: Axes, references: References | None) -> None:
    for name, played in references.by_policy.items() if references else ():
        axis.axhline(played.return_mean, color=GREY, linestyle=REFERENCE_DASHES[name], linewidth=1, label=name)
