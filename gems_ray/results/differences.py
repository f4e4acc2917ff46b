"""Two runs against each other: what differs in what they were given, and in what they reached."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.comparison import CHECKPOINTS, SIGNIFICANT, matched_cells, returns_of, tested_cells
from gems_ray.results.settings import flat
from gems_ray.results.statistics import (
    Values,
    bootstrap_interval,
    holm,
    improvement_interval,
    probability_of_improvement,
    welch_test,
)
from gems_ray.yaml_file import yaml_text

SEED = 0  # of the resamples
MISSING = "-"


def input_differences(one: RunFolder, other: RunFolder) -> pd.DataFrame:
    """One row per setting, version or dataset that is not the same: `part`, `name`, `a`, `b`, all of them texts.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    rows = []
    for part, read in (
        ("experiment", _experiment), ("machine", _machine), ("data", _data), ("reference policies", _references),
    ):  # fmt: skip
        first, second = read(one), read(other)
        for name in dict.fromkeys((*first, *second)):
            a, b = (_text(values, name) for values in (first, second))
            if a == b and first.get(name) != second.get(name):  # numbers that differ in their last digits
                a, b = (str(values.get(name, MISSING)) for values in (first, second))
            if a != b:
                rows.append({"part": part, "name": name, "a": a, "b": b})
    return pd.DataFrame(rows, columns=["part", "name", "a", "b"])


def result_differences(one: RunFolder, other: RunFolder) -> pd.DataFrame:
    """One row per checkpoint, environment, algorithm and settings that both runs have, matched by `matched_cells`.

    Returns:
        `a_mean`, `a_std`, `a_seeds`, the same for b; `difference` b - a with `low` and `high` (95%, widened for few
        seeds); `p_value` of Welch's test, corrected after Holm for the rows of a checkpoint; `b_is_better`, how often
        a run of b is better, with `b_is_better_low` and `b_is_better_high`; `better`: A, B, neither, unknown (too few
        seeds); the names of the cells.
    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    first, second = _groups(one, other)
    common = sorted(set(first) & set(second))
    rows: list[dict[str, Any]] = []
    for checkpoint in CHECKPOINTS:
        pairs = [(returns_of(first[key], checkpoint), returns_of(second[key], checkpoint)) for key in common]
        p_values = holm([welch_test(a, b) for a, b in pairs])
        for key, (a, b), p_value in zip(common, pairs, p_values, strict=True):
            environment, algorithm, settings = key
            names = {"environment": environment, "algorithm": algorithm, "settings": settings}
            cells = {"a_cells": " ".join(first[key]["cell"]), "b_cells": " ".join(second[key]["cell"])}
            rows.append({**names, "checkpoint": checkpoint, **_difference(a, b, float(p_value)), **cells})
    return pd.DataFrame(rows)


def only_in(one: RunFolder, other: RunFolder) -> list[str]:
    """What the first run has and the second has not: `diffuse_mix td3_bc alpha 0.5`."""
    first, second = _groups(one, other)
    missing = sorted(set(first) - set(second))
    return [" ".join(filter(None, key)) for key in missing]


def repeated_cells(one: RunFolder, other: RunFolder) -> tuple[int, list[str]]:
    """How many cells were tested in both runs, and the names of those that did not give the same numbers."""
    columns = ["last_return", "best_return"]
    tested = [tested_cells([run]).set_index("cell")[columns].dropna() for run in (one, other)]
    both = tested[0].index.intersection(tested[1].index)
    same = (tested[0].loc[both] == tested[1].loc[both]).all(axis=1)
    return len(both), sorted(both[~same.to_numpy()])


def _difference(a: Values, b: Values, p_value: float) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, values in (("a", a), ("b", b)):
        row[f"{name}_mean"] = float(values.mean()) if len(values) else math.nan
        row[f"{name}_std"] = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        row[f"{name}_seeds"] = len(values)
    row["difference"] = row["b_mean"] - row["a_mean"]
    row["low"], row["high"] = bootstrap_interval([a, b], _second_less_first, np.random.default_rng(SEED))
    row["p_value"] = p_value
    known = len(a) > 0 and len(b) > 0
    row["b_is_better"] = probability_of_improvement([b], [a]) if known else math.nan
    row["b_is_better_low"], row["b_is_better_high"] = improvement_interval([b], [a], np.random.default_rng(SEED))
    if math.isnan(p_value):
        row["better"] = "unknown"
    elif p_value > SIGNIFICANT:
        row["better"] = "neither"
    else:
        row["better"] = "B" if row["difference"] > 0 else "A"
    return row


def _second_less_first(strata: Sequence[Values]) -> Values:
    return strata[1].mean(axis=-1) - strata[0].mean(axis=-1)


Groups = dict[tuple[str, str, str], pd.DataFrame]  # by environment, algorithm and settings


def _groups(one: RunFolder, other: RunFolder) -> tuple[Groups, Groups]:
    first, second = (
        {
            (str(key[0]), str(key[1]), str(key[2])): group
            for key, group in cells.groupby(["environment", "algorithm", "settings"], sort=True)
        }
        for cells in matched_cells(one, other)
    )
    return first, second


def _experiment(run: RunFolder) -> dict[str, Any]:
    return flat("", run.experiment().as_yaml())


def _machine(run: RunFolder) -> dict[str, Any]:
    machine = run.machine()
    return machine.model_dump(exclude={"schema_version"}) if machine else {}


def _data(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for environment, facts in run.datasets().items():
        values = {"dataset": facts.fingerprint, "transitions": facts.transitions, "world": facts.world_fingerprint}
        found |= {f"{environment}.{name}": value for name, value in values.items()}
    return found


def _references(run: RunFolder) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for environment in run.experiment().environment:
        known = run.references(environment)
        for name, played in known.by_policy.items() if known else ():
            found[f"{environment}.{name}"] = f"{played.return_mean:.1f} ({played.users} users)"
    return found


def _text(values: Mapping[str, Any], name: str) -> str:
    return yaml_text(values[name]) if name in values else MISSING
