"""How far a run has come, read from its folder."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gems_ray import metrics
from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import ENDED, RUNNING, UNFINISHED, CellFolder
from gems_ray.experiments.records import CellResult, Report
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.metrics import SECONDS, STEP
from gems_ray.yaml_file import short_text


@dataclass(frozen=True, slots=True)
class CellProgress:
    """A change of a cell while a run goes on."""

    name: str
    state: str  # running, retried, or how it ended
    report: Mapping[str, Any]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CellState:
    """A cell at a moment."""

    name: str
    state: str
    max_timesteps: int  # 0 where the cell's description is damaged
    report: Mapping[str, float]  # the last one
    reason: str = ""
    title: str = ""  # for people; the name where there is none
    settings: str = ""  # that differ from the algorithm's defaults: `alpha 0.5, batch_size 64`
    former_return: float | None = None  # of the evaluation before the last one

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        return int(self.report.get(STEP, 0))

    @property
    def remaining_seconds(self) -> float | None:
        """Training time that is left, at the speed so far; None where nothing has been trained."""
        if self.state in ENDED:
            return 0.0
        seconds = self.report.get(SECONDS, 0.0)
        return (self.max_timesteps - self.updates) * seconds / self.updates if self.updates and seconds else None


@dataclass(frozen=True, slots=True)
class RunState:
    """A run at a moment."""

    cells: list[CellState]
    running: bool
    planned: int  # cells that the run will have at its end, at least

    @property
    def stopped(self) -> bool:
        """Whether something is left to do, and no process does it."""
        return self.has_work and not self.running

    @property
    def has_work(self) -> bool:
        """Whether a cell has not ended, or not begun."""
        return len(self.cells) < self.planned or any(cell.state not in ENDED for cell in self.cells)

    def counts(self) -> str:
        """How many cells are in which state: `2 finished, 3 not begun`."""
        counts = Counter(cell.state for cell in self.cells)
        parts = [f"{count} {state}" for state, count in sorted(counts.items())]
        if (later := self.planned - len(self.cells)) > 0:
            parts.append(f"{later} not begun")
        return ", ".join(parts) or "nothing begun"

    def summary(self) -> str:
        """One line: states, and the time that is left."""
        text = self.counts()
        if not self.has_work:
            return f"{text}."
        if self.stopped:
            return f"{text}. No process runs it."
        left = self.remaining_seconds()
        return f"{text}. Running" + ("." if left is None else f", about {describe_seconds(left)} left.")

    def remaining_seconds(self) -> float | None:
        """Time that is left if as many cells run at once as now; None where no cell has shown its speed."""
        speeds = [
            cell.report[SECONDS] / cell.updates for cell in self.cells if cell.updates and cell.report.get(SECONDS)
        ]
        if not speeds:
            return None
        typical = sum(speeds) / len(speeds)
        remaining = []
        for cell in self.cells:
            if cell.state not in ENDED:
                left = cell.remaining_seconds
                remaining.append(cell.max_timesteps * typical if left is None else left)
        length = sum(cell.max_timesteps for cell in self.cells) / len(self.cells)
        new = max(0, self.planned - len(self.cells)) * length * typical
        at_once = max(1, sum(cell.state == RUNNING for cell in self.cells))
        return max([(sum(remaining) + new) / at_once, *remaining])


def read_progress(run: RunFolder) -> RunState:
    """The state of a run.

    Raises:
        RunFolderError: the folder is damaged.
    """
    running = run.is_locked()
    in_work, titles = run.running_cells() if running else set(), cell_titles(run)
    order = {name: index for index, name in enumerate(titles)}
    folders = sorted(run.cells(), key=lambda folder: order.get(folder.path.name, len(order)))
    cells = [
        replace(read_cell(folder, folder.path.name in in_work), title=titles.get(folder.path.name, ""))
        for folder in folders
    ]
    return RunState(cells, running, _planned(run))


def read_cell(folder: CellFolder, in_work: bool = False) -> CellState:
    """The state of a cell.

    Args:
        folder: of the cell.
        in_work: whether a process trains it.
    """
    max_timesteps, settings, result, reason = 0, "", None, None
    try:
        description = folder.description
        max_timesteps, settings = description.training.max_timesteps, _list(description.settings)
        result = folder.result()
        state, reason = folder.status_by(result), result and result.reason
    except RunFolderError as error:
        state, reason = UNFINISHED, str(error)
    if state not in ENDED and in_work:
        state = RUNNING
    former, report = _last_reports(folder, result)
    if result and result.offline:
        report = {**report, **{metrics.offline(name): value for name, value in result.offline}}
    return CellState(
        folder.path.name,
        state,
        max_timesteps,
        report,
        reason or "",
        settings=settings,
        former_return=former.get(metrics.RETURN_MEAN),
    )


def _last_reports(folder: CellFolder, result: CellResult | None) -> tuple[Report, Report]:
    """The last report and the one before it; of a cell that has ended, the last one alone."""
    if result and result.report:
        return {}, result.report
    former, last = ([{}, {}, *folder.metrics()])[-2:]
    return former, last


def _list(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {short_text(value)}" for name, value in settings.items())


def cell_titles(run: RunFolder) -> dict[str, str]:
    """What the cells of a search try, by name and in their order: `trial 3: alpha 0.46, batch_size 128 (2edc2f)`.

    Empty for a grid, and where a damaged record leaves it open.

    Raises:
        RunFolderError: the experiment's file is damaged.
    """
    titles: dict[str, str] = {}
    if not run.experiment().search:
        return titles
    try:
        trials, again = run.trials(), run.candidates() or []
    except RunFolderError:
        return titles
    for number, trial in trials.items():
        settings = _list({name.removeprefix(f"{trial.algorithm}."): value for name, value in trial.params.items()})
        for name in trial.cells:
            titles.setdefault(name, _title(f"trial {number}: {settings}", name, len(trial.cells) > 1))
    for candidate in again:
        for name in candidate.cells:
            titles.setdefault(name, _title(f"{candidate.label} again", name, several=True))
    return titles


def _title(text: str, name: str, several: bool) -> str:
    """With the seed and the environment where there are several cells; the digits find the cell in `logs`."""
    place, _, digits = name.rpartition("-")
    environment, *_, seed = place.split("-")
    return f"{text}{f', {environment} {seed}' if several else ''} ({digits[:6]})"


def describe_seconds(seconds: float) -> str:
    """A duration in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _planned(run: RunFolder) -> int:
    """Cells of a grid; of a search, those of all trials and candidates, at most until they are known."""
    experiment = run.experiment()
    if not experiment.search:
        return len(experiment.cells())
    if run.candidates() is not None:
        return len(run.search_cells())
    again = experiment.search.confirm.planned(len(experiment.algorithm))
    return len(experiment.environment) * (experiment.planned_trials * experiment.search.seeds_per_trial + again)
