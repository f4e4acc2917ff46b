"""Everything that pictures and the report need from run folders, read once."""

from collections.abc import Sequence
from functools import cached_property

import pandas as pd

from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.experiments.records import References
from gems_ray.metrics import STEP
from gems_ray.results.cells import cells_frame, run_names, scores
from gems_ray.results.comparison import Comparison, references_of
from gems_ray.results.curves import curves_frame

PLACE = ["environment", "group", "run", "cell", "seed"]  # of a curve
LONGEST_SETTINGS = 48  # letters, in the name of a group


class Results:
    """The results of runs at one moment; each part is read when it is first asked for.

    A *group* is one algorithm with one choice of settings; its cells in one environment differ in their seeds alone.

    Args:
        runs: that are read.
    """

    def __init__(self, runs: Sequence[ReadableRun]) -> None:
        self.runs = runs
        self.names = run_names(runs)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell, with its `run`."""
        cells = cells_frame(*self.runs)
        return cells if "run" in cells else cells.assign(run=self.names[0])

    @cached_property
    def scored(self) -> pd.DataFrame:
        """All cells with their scores, for both checkpoints."""
        return self._with_scores(self.cells)

    @cached_property
    def comparison(self) -> Comparison:
        """The groups against each other."""
        return Comparison(self.runs, self.cells.drop(columns="run") if len(self.runs) == 1 else self.cells)

    @cached_property
    def tested(self) -> pd.DataFrame:
        """The cells that are compared with each other, with `group` and, for both checkpoints, their scores.

        Of a search these are the candidates on fresh seeds.
        """
        cells = self.comparison.tested
        cells = cells if "run" in cells else cells.assign(run=self.names[0])
        return self._with_scores(cells.assign(group=_groups(cells)))

    @cached_property
    def shown(self) -> pd.DataFrame:
        """The cells whose curves are drawn: the tested ones; of a search that has none yet, its trials."""
        if len(self.tested):
            return self.tested
        trials = {
            (name, cell): f"trial {number}"
            for name, run in zip(self.names, self.runs, strict=True)
            for number, trial in run.trials().items()
            for cell in trial.cells
        }
        keys = zip(self.scored["run"], self.scored["cell"], strict=True)
        return self.scored.assign(group=[trials.get(key, key[1]) for key in keys], settings="")

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per report of every cell."""
        return curves_frame(self.runs, self.cells.drop(columns="run") if len(self.runs) == 1 else self.cells)

    @cached_property
    def references(self) -> dict[str, References | None]:
        """By environment, what the reference policies reached."""
        return references_of(self.runs, sorted(self.cells["environment"].unique()))

    @property
    def gaps(self) -> list[str]:
        """What could not be read so far, a line each."""
        return [line for run in self.runs for line in run.gaps.lines]

    def group_curves(self, metric: str) -> pd.DataFrame:
        """A row per environment, group, cell and report in which a metric was measured, of the shown cells.

        Args:
            metric: of gems_ray/metrics.py.
        """
        columns = [*PLACE, STEP, metric]
        return self._drawn[columns].dropna(subset=[metric]) if metric in self.curves else pd.DataFrame(columns=columns)

    @cached_property
    def _drawn(self) -> pd.DataFrame:
        """The curves of the shown cells, with their groups."""
        own = [name for name in self.curves.columns if name not in PLACE or name in ("run", "cell")]
        return self.shown[PLACE].merge(self.curves[own], on=["run", "cell"])

    def _with_scores(self, cells: pd.DataFrame) -> pd.DataFrame:
        for kind in ("last", "best"):
            values = cells[f"{kind}_return"].astype(float)
            cells = cells.assign(**{f"{kind}_score": values.to_numpy()})
            for environment in cells["environment"].unique():
                here = cells["environment"] == environment
                known = self.references.get(environment)
                cells.loc[here, f"{kind}_score"] = scores(values[here].to_numpy(), known)
        return cells


def group_names(cells: pd.DataFrame) -> dict[tuple[str, str], str]:
    """What the groups are called, by algorithm and settings.

    `td3_bc`, or `td3_bc: alpha 0.5` where there are several of the algorithm. Where the settings would be too long,
    `td3_bc (grid)` by the name of their run, or a number if that does not tell them apart.

    Args:
        cells: with `algorithm`, `settings` and `run`.
    """
    found: dict[tuple[str, str], str] = {}
    for algorithm, here in cells.groupby("algorithm", sort=True):
        runs = {str(settings): sorted(group["run"].unique()) for settings, group in here.groupby("settings", sort=True)}
        by_run = len({tuple(names) for names in runs.values()}) == len(runs) and all(len(n) == 1 for n in runs.values())
        for number, (settings, names) in enumerate(runs.items(), start=1):
            name = f"{algorithm}: {settings}" if settings else str(algorithm)
            if len(settings) > LONGEST_SETTINGS:
                name = f"{algorithm} ({names[0]})" if by_run else f"{algorithm} #{number}"
            found[str(algorithm), settings] = name
    return found


def _groups(cells: pd.DataFrame) -> list[str]:
    names = group_names(cells)
    return [
        names[algorithm, settings] for algorithm, settings in zip(cells["algorithm"], cells["settings"], strict=True)
    ]
