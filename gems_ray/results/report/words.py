"""What a run says, in words: the summary, and warnings in plain language."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gems_ray.experiments.cell_folder import DIVERGED, FAILED, PENDING, PRUNED, RUNNING, UNFINISHED, WITH_RESULT
from gems_ray.results.comparison import ALIKE, BEST, UNTOLD, returns_of
from gems_ray.results.results import Results, group_names
from gems_ray.results.statistics import Values, welch_test

CLONE = "bc"
PEAK = 10  # score points by which the best checkpoint is above the last one before it is told
FEW_SLATES = 0.1  # of the slates of the behaviour agent
MANY_ABOVE = 0.5  # of the Q-values
FEWEST_SEEDS = 3
LISTED = 5


@dataclass(frozen=True, slots=True)
class Caution:
    """Something that a reader should know before believing a number.

    Args:
        kind: diverged, failed, slates, bc, seeds, peak, bound, cells or gap.
        text: a sentence or two.
        cells: names of the cells that it is about.
    """

    kind: str
    text: str
    cells: tuple[str, ...] = ()


def summary(results: Results) -> list[str]:
    """The result in sentences; what is uncertain is said as uncertain."""
    compared, overall = results.comparison.compared, results.comparison.overall
    if compared.empty or compared["mean"].isna().all():
        return ["No cell has a return of the test users yet, so nothing can be compared."]
    lines, names = [], group_names(results.tested)
    last = compared[compared["checkpoint"] == "last"]
    for environment, here in last.groupby("environment", sort=True):
        lines.append(_sentence(f"In {environment}", "clicks per episode", here, names))
    if not overall.empty:
        here = overall[overall["checkpoint"] == "last"]
        lines.append(_sentence("Over all environments together", "points of the score", here, names))
    lines.append("All of this is about the final checkpoints and the test users, who chose nothing.")
    return lines


def _sentence(place: str, unit: str, rows: pd.DataFrame, names: Mapping[tuple[str, str], str]) -> str:
    known = rows.dropna(subset=["mean"])
    if known.empty:
        return f"{place} no cell has a return of the test users yet."
    found = known.to_dict("records")
    best = max(found, key=lambda row: row["mean"])
    seeds = int(best["seeds"])
    interval = (
        f"95% interval of the interquartile mean {best['iqm_low']:.1f} to {best['iqm_high']:.1f}"
        if not pd.isna(best["iqm_low"])
        else "a single seed, so that nothing is known about chance"
    )
    amount = f"{best['mean']:.1f} {unit}" + (f", score {best['score']:.0f}" if not pd.isna(best.get("score")) else "")
    seen = "has the highest mean:" if len(found) > 1 else "has a mean of"
    text = f"{place}, {_name(best, names)} {seen} {amount} ({interval}; {seeds} seed{'s' * (seeds != 1)})."
    others = [row for row in found if row is not best]
    untold = [row for row in others if row["verdict"] == UNTOLD]
    alike = [row for row in others if row["verdict"] == ALIKE]
    worse = [row for row in others if row["verdict"] not in (UNTOLD, ALIKE, BEST)]
    if worse:
        text += f" It is better than {_names(worse, names)}; chance alone would hardly explain that (p at most 0.05)."
    if alike:
        text += f" It cannot be told apart from {_names(alike, names)}: more seeds may turn this around."
    if untold:
        text += f" There are too few seeds to compare it with {_names(untold, names)}."
    return text


def warnings(results: Results) -> list[Caution]:
    """What a reader should know before believing the numbers, the worst first."""
    found = [
        *_by_status(results, FAILED, "failed"),
        *_by_status(results, DIVERGED, "diverged"),
        *_unfinished(results),
        *(Caution("gap", f"Damaged, and left out: {line}") for line in results.gaps),
    ]
    tested = results.tested[results.tested["status"].isin(WITH_RESULT)]
    for (environment, group), cells in tested.groupby(["environment", "group"], sort=True):
        found += _of_group(results, str(environment), str(group), cells)
    return found


def _by_status(results: Results, status: str, kind: str) -> Iterator[Caution]:
    cells = results.cells[results.cells["status"] == status]
    for (algorithm, environment), group in cells.groupby(["algorithm", "environment"], sort=True):
        both = (results.cells["algorithm"] == algorithm) & (results.cells["environment"] == environment)
        count = f"{len(group)} of {int(both.sum())} cells of {algorithm} in {environment}"
        names = tuple(group["cell"])
        if kind == FAILED:
            reasons = list(dict.fromkeys(str(reason) for reason in group["reason"].dropna()))
            text = f"{count} failed and are in no mean: {'; '.join(reasons[:2]) or 'no reason was recorded'}"
            yield Caution(kind, text, names)
        else:
            yield Caution(
                kind,
                f"{count} diverged: their Q-values stayed far above the most that the rewards can pay. They were "
                "trained to the end, and their returns count.",
                names,
            )


def _unfinished(results: Results) -> Iterator[Caution]:
    cells = results.cells[results.cells["status"].isin([RUNNING, UNFINISHED, PENDING])]
    if len(cells):
        yield Caution(
            "cells",
            f"{len(cells)} of {len(results.cells)} cells have not ended, so that their seeds are missing in the means.",
            tuple(cells["cell"]),
        )
    pruned = int((results.cells["status"] == PRUNED).sum())
    if pruned:
        yield Caution("cells", f"ASHA stopped {pruned} of {len(results.cells)} cells early; they have no test return.")


def _of_group(results: Results, environment: str, group: str, cells: pd.DataFrame) -> Iterator[Caution]:
    names, known = tuple(cells["cell"]), results.references.get(environment)
    place = f"{group} in {environment}"
    returns = {kind: cells[f"{kind}_return"].dropna().to_numpy(dtype=float) for kind in ("last", "best")}
    if 0 < len(returns["last"]) < FEWEST_SEEDS:
        count = len(returns["last"])
        text = f"{place} has {count} seed{'s' * (count > 1)} with a result: too few to tell a difference from chance."
        yield Caution("seeds", text, names)
    gain = (cells["best_score"] - cells["last_score"]).dropna().astype(float)
    if len(gain) and gain.mean() >= PEAK:
        text = (
            f"The best checkpoint of {place} returns {returns['best'].mean():.1f}, its last one "
            f"{returns['last'].mean():.1f}: training went on past a peak, which only the users of a simulator show."
        )
        yield Caution("peak", text, names)
    slates = cells["distinct_slates"].dropna().astype(float)
    behavior = known.behavior if known else None
    if behavior and len(slates) and slates.mean() < FEW_SLATES * behavior.distinct_slates:
        text = (
            f"{place} has collapsed onto few slates: it shows {slates.mean():.0f} different ones to all test users, "
            f"the behaviour agent {behavior.distinct_slates:,}."
        )
        yield Caution("slates", text, names)
    above = cells["q_above_bound"].dropna().astype(float)
    if len(above) and above.mean() > MANY_ABOVE and not (cells["status"] == DIVERGED).any():
        text = f"{above.mean():.0%} of the Q-values of {place} promise more than the rewards can pay; not diverged yet."
        yield Caution("bound", text, names)
    if not (cells["algorithm"] == CLONE).any():
        yield from _below_bc(results, environment, group, returns["last"], names)


def _below_bc(
    results: Results, environment: str, group: str, returns: Values, names: tuple[str, ...]
) -> Iterator[Caution]:
    """Whether a group is below cloning with those of its settings that did best here."""
    tested = results.tested
    here = tested[(tested["environment"] == environment) & (tested["algorithm"] == CLONE)]
    clones = {str(name): found for name, cells in here.groupby("group") if len(found := returns_of(cells, "last"))}
    best = max(clones, key=lambda name: clones[name].mean(), default=None)
    if best is None or not len(returns) or np.mean(returns) >= np.mean(clones[best]):
        return
    clone = clones[best]
    p_value = welch_test(returns, clone)
    chance = (
        "there are too few seeds to say whether by chance"
        if np.isnan(p_value)
        else "this is hardly chance"
        if p_value <= 0.05
        else "this may be chance"
    )
    test = "" if np.isnan(p_value) else f" (Welch's test of these two alone: p = {p_value:.2g})"
    yield Caution(
        "bc",
        f"{group} is below plain cloning in {environment}: {np.mean(returns):.1f} against {np.mean(clone):.1f} of "
        f"{best}; {chance}{test}.",
        names,
    )


def _name(row: Mapping[Any, Any], names: Mapping[tuple[str, str], str]) -> str:
    return names[row["algorithm"], row["settings"]]


def _names(rows: Sequence[Mapping[Any, Any]], names: Mapping[tuple[str, str], str]) -> str:
    found = [_name(row, names) for row in rows]
    return ", ".join(found[:LISTED]) + (f" and {len(found) - LISTED} more" if len(found) > LISTED else "")
