"""Which cell is trained next, what is recorded of it, and what becomes of a cell that did not get through."""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from gems_ray import metrics
from gems_ray.algorithms import ALGORITHMS
from gems_ray.execution.recorder import CellRecorder
from gems_ray.execution.sources import Source
from gems_ray.execution.storage import CheckpointStorage, absolute
from gems_ray.experiments.cell_folder import ENDED, FAILED, RUNNING, UNFINISHED, WITH_RESULT
from gems_ray.experiments.check import all_settings
from gems_ray.experiments.progress import CellProgress
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Resources
from gems_ray.tune.offline_rl import SET_BACK, config_of
from gems_ray.tune.run_end import RunEnd, error_ends_run

RETRIES = 5  # in a row, without an evaluation in between
FIRST_BACK_OFF_SECONDS = 1.0  # doubled at every failure
RETRIED, LOST = "retried", "its process was lost"
WAITING, GAVE_WAY = "waiting", "gave way to another run of the cluster"

Watcher = Callable[[CellProgress], None]


class CellQueue(tune.Callback):
    """Cells of one Tune run that wait for a process or have one: the only place that records, and that tries again.

    A cell whose process or node was lost, and one that the machine set back (a full disk, a storage or a dataset that
    cannot be reached), waits, ever longer, and goes on from its last checkpoint. After too many failures in a row a
    lost cell has failed, and one that was set back stays unfinished.

    Args:
        run: folder of the cells.
        sources: datasets and worlds by environment.
        resources: of one cell.
        watcher: called at every change of a cell.
        end: of the Tune run.
        places: how many of the cells that have not ended may be at work; None where no other run wants the machines.
    """

    def __init__(
        self,
        run: RunFolder,
        sources: Mapping[str, Source],
        resources: Resources,
        watcher: Watcher,
        end: RunEnd,
        places: Callable[[int], int] | None = None,
    ) -> None:
        self.end, self._places = end, places
        self._run, self._sources, self._resources, self._watcher = run, sources, resources, watcher
        self._storage = CheckpointStorage(run.storage)
        self._cells: dict[str, Cell] = {}  # by name, those that wait or have a process
        self._waiting: dict[str, float] = {}  # by name, from which moment on they may start
        self._recorders: dict[str, CellRecorder] = {}  # by name, those that have a process
        self._failures: Counter[str] = Counter()  # by name, in a row
        self._evaluated: dict[str, int] = {}  # by name, updates at the last evaluation
        # A trial of Tune trains one cell, or a pack of several; in these it goes by the name of the first one.
        self._handed_out: set[str] = set()  # trials that Tune has got, which may wait for a process
        self._at_work: dict[str, None] = {}  # trials that have a process, the first one first
        self._left_behind: set[str] = set()  # cells that have ended in a pack that goes on
        self._kinds: dict[str, str] = {}  # by name, what `_kind` has found
        self._giving_way: set[str] = set()  # trials that are saved, to leave their places to other runs
        self.to_come = 0  # cells that a search will add, at least
        end.unsaved, end.gives_way = self._recorders.keys, self._gives_way

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing ever reads that back, and a live display cannot be pickled."""
        return {}

    def add(self, cells: Iterable[Cell]) -> None:
        """Lets cells wait for a process; those that have ended, or are here already, are left out."""
        for cell in cells:
            if cell.name not in self._cells and self._run.cell(cell.name).status not in ENDED:
                self._cells[cell.name] = cell
                self._waiting[cell.name] = 0.0

    @property
    def fills_pack(self) -> bool:
        """Whether enough cells may start for a trial of Tune, one or as many as a pack takes."""
        now = time.monotonic()
        return sum(moment <= now for moment in self._waiting.values()) >= self._resources.cells_per_pack

    def take(self) -> dict[str, Any] | None:
        """The config of the trial that trains the next cell; None while no cell may start."""
        now = time.monotonic()
        name = next((name for name, moment in self._waiting.items() if moment <= now), None)
        if name is None:
            return None
        pack = self._pack_of(name, now)
        for other in pack:
            del self._waiting[other]
        self._handed_out.add(name)
        config, *others = map(self._config_of, pack)
        return {**config, "pack": others} if others else config

    def _pack_of(self, name: str, now: float) -> list[str]:
        """The cell and those that wait with it and can be trained in one program."""
        size = self._resources.cells_per_pack
        if size == 1:
            return [name]
        kind = self._kind(name)
        if not kind:
            return [name]
        alike = (n for n, moment in self._waiting.items() if n != name and moment <= now and self._kind(n) == kind)
        updates = self._saved_updates(name)
        return [name, *islice((n for n in alike if self._saved_updates(n) == updates), size - 1)]

    def _saved_updates(self, name: str) -> int:
        checkpoint = self._run.cell(name).checkpoint()
        return checkpoint.updates if checkpoint else 0

    def _kind(self, name: str) -> str:
        """What the cells of a pack have in common; empty where a cell can only be trained alone."""
        if name not in self._kinds:
            cell = self._cells[name]
            per_cell = ALGORITHMS[cell.algorithm].per_cell
            common = all_settings(cell.algorithm, cell.settings)
            common = {k: v for k, v in common.items() if k not in (per_cell or ())}
            evaluation = cell.experiment.evaluation.model_dump(mode="json")
            kind = json.dumps([cell.environment, cell.algorithm, common, evaluation], sort_keys=True)
            self._kinds[name] = "" if per_cell is None else kind
        return self._kinds[name]

    def _config_of(self, name: str) -> dict[str, Any]:
        checkpoint = self._run.cell(name).checkpoint()
        where = {"storage": absolute(self._run.storage), "path": checkpoint.path} if checkpoint else None
        resources = {"cpu": self._resources.cpu, "gpu": self._resources.gpu}
        return {**config_of(self._cells[name]), "resources": resources, "cell": name, "checkpoint": where}

    @property
    def full(self) -> bool:
        """Whether no further cell may begin, because other runs have a right to the places."""
        return self._places is not None and len(self._handed_out) >= self._allowed(self._places)

    def _gives_way(self, name: str) -> bool:
        """Whether a trial is to be saved and to wait, because other runs have a right to its place."""
        if self._places is not None:
            allowed = self._allowed(self._places)
            if name not in list(self._at_work)[:allowed]:  # the first one has begun first
                self._giving_way.add(name)
        return name in self._giving_way

    def _allowed(self, places: Callable[[int], int]) -> int:
        """How many trials may be at work now."""
        size = self._resources.cells_per_pack
        if size == 1:
            return places(len(self._cells) + self.to_come)
        kinds = Counter(map(self._kind, self._cells))
        alone = kinds.pop("", 0)
        return places(alone + sum(math.ceil(n / size) for n in kinds.values()) + math.ceil(self.to_come / size))

    @property
    def busy(self) -> bool:
        """Whether a cell waits or has a process."""
        return bool(self._cells)

    @error_ends_run(None)
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A process has taken the cell up."""
        self._at_work[cell_name(trial)] = None
        names = cell_names(trial)
        for name in names:
            self._recorders[name] = self._recorder(name)
        self._run.write_running_cells(self._recorders)
        for name in names:
            self._report_change(name, RUNNING)

    @error_ends_run(None)
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A sign of life; an evaluation is progress, because the cell would go on from there."""
        reports = cell_reports(trial, result)
        for name, report in reports.items():
            recorder = self._recorders[name]
            if name in self._left_behind:
                continue
            recorder.hear(report)
            evaluated = int(report.get(metrics.EVALUATED, 0))
            if evaluated > self._evaluated.get(name, 0):
                self._evaluated[name] = evaluated
                self._failures[name] = 0
            failed = len(reports) > 1 and report.get(metrics.STATUS) == FAILED
            if failed:
                recorder.end(report)
            if len(reports) > 1 and recorder.folder.status in ENDED:
                self._left_behind.add(name)
            self._report_change(name, FAILED if failed else RUNNING, report)

    @error_ends_run(None)
    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: tune.Checkpoint, **info: Any
    ) -> None:
        """The state of the cell has been saved."""
        path = self._storage.path_of(checkpoint.path)
        own = str(Path(path).parent)  # the trial's folder, in which Tune removes earlier checkpoints
        reports = cell_reports(trial, trial.last_result)
        for name, report in reports.items():
            recorder = self._recorders[name]
            if metrics.EVALUATED not in report:  # it could not be opened
                continue
            if len(reports) > 1 and report.get(metrics.STATUS) == FAILED:  # its pack goes on, and does not save it
                continue
            of_cell = f"{path}/{name}" if len(reports) > 1 else path
            before = recorder.checkpointed(of_cell, int(report[metrics.EVALUATED]))
            if before is not None and not Path(before.path).is_relative_to(own):
                self._storage.remove(before.path)

    @error_ends_run(None)
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell has ended, was set back, or is stopped with the run."""
        reasons = {name: self._end_of(trial, name, report) for name, report in cell_reports(trial).items()}
        self._conclude_trial(trial, reasons)

    def _end_of(self, trial: Trial, name: str, report: Mapping[str, Any]) -> str:
        """Records the result of a cell that has one; why it has none."""
        recorder = self._recorders.get(name)
        status, reason = report.get(metrics.STATUS), str(report.get(metrics.REASON, ""))
        if recorder is not None and recorder.folder.status not in ENDED:
            if status == FAILED:
                recorder.end(report)
            elif status in WITH_RESULT:
                saved = recorder.checkpoint and recorder.checkpoint.updates == report[metrics.EVALUATED]
                if saved:
                    recorder.end(report)
                reason = "its last checkpoint could not be written"
        if status not in (SET_BACK, *WITH_RESULT):
            reason = GAVE_WAY if cell_name(trial) in self._giving_way else LOST
        return reason

    @error_ends_run(None)
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell's process or node was lost; a node that leaves with notice is no failure to Tune."""
        self._conclude_trial(trial, dict.fromkeys(cell_names(trial), LOST))

    def _conclude_trial(self, trial: Trial, reasons: Mapping[str, str]) -> None:
        """After a trial: a cell that has not ended waits for the next one, unless it has failed too often."""
        first = cell_name(trial)
        self._handed_out.discard(first)
        self._giving_way.discard(first)
        self._at_work.pop(first, None)
        reports = cell_reports(trial)
        ends = [(name, *self._conclude(name, reason)) for name, reason in reasons.items()]
        drop_latest_values(trial)
        self._run.write_running_cells(self._recorders)
        for name, state, reason in ends:
            self._report_change(name, state, reports[name], reason)

    def _conclude(self, name: str, reason: str) -> tuple[str, str]:
        """What becomes of a cell after its trial, and why."""
        recorder = self._recorders.pop(name, None)
        self._left_behind.discard(name)
        folder = self._run.cell(name)
        state = folder.status
        if state in ENDED:
            reason = ""  # what happened to the process after that does not matter
        elif self.end.stopping:
            state, reason = UNFINISHED, ""
        elif reason == GAVE_WAY:
            folder.add_log(reason)
            state, self._waiting = WAITING, {name: 0.0, **self._waiting}
        else:
            folder.add_log(f"set back: {reason}", "WARNING")
            failures = self._failures[name] = self._failures[name] + 1
            if failures <= RETRIES:
                state = RETRIED
                self._waiting[name] = time.monotonic() + FIRST_BACK_OFF_SECONDS * 2 ** (failures - 1)
            elif reason == LOST:
                state = FAILED
                reason += f", failure {failures} in a row (out of memory? the cell's log tells how far it came)"
                (recorder or self._recorder(name)).fail(reason, self._evaluated.get(name, 0))
            else:
                state = UNFINISHED
        if state not in (RETRIED, WAITING):
            self._cells.pop(name, None)
        return state, reason

    def _recorder(self, name: str) -> CellRecorder:
        return CellRecorder(self._run.cell(name), self._sources[self._cells[name].environment].fingerprints)

    def _report_change(self, name: str, state: str, report: Mapping[str, Any] | None = None, reason: str = "") -> None:
        self._watcher(CellProgress(name, state, report or {}, reason))


class CellSearch(Searcher):
    """Hands the cells of a queue to Tune, one to each trial, until every one of them has ended.

    Args:
        queue: the cells.
    """

    def __init__(self, queue: CellQueue) -> None:
        super().__init__()
        self.end = queue.end
        self._queue = queue

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that stays; nothing ever reads that back."""
        return {}

    @error_ends_run(Searcher.FINISHED)
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next cell; None while all are in work or wait after a failure."""
        if self.end.stopping or not self._queue.busy:
            return Searcher.FINISHED
        return None if self._queue.full else self._queue.take()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The queue knows already."""

    def save(self, checkpoint_path: str) -> None:
        """Leaves an empty file for Tune: the run folder is the record."""
        Path(checkpoint_path).touch()


def drop_latest_values(trial: Trial) -> None:
    """Drops the last five and ten values of every metric, which Tune keeps for its averages while a trial goes on.

    Tune keeps them, and the text that it writes of them, for all trials that have ended too. By tracemalloc, Python's
    heap in the driver grew by 181 kB for each cell with them, and by 66 kB without. The averages themselves stay.
    """
    getattr(trial, "metric_n_steps", {}).clear()


def cell_name(trial: Trial) -> str:
    """The cell that a trial of Tune trains, of a pack the first one."""
    return str(trial.config["cell"])


def cell_configs(trial: Trial) -> dict[str, Mapping[str, Any]]:
    """The configs of all cells that a trial of Tune trains, by name."""
    return {str(config["cell"]): config for config in (trial.config, *trial.config.get("pack", ()))}


def cell_names(trial: Trial) -> list[str]:
    """All cells that a trial of Tune trains."""
    return list(cell_configs(trial))


def cell_reports(trial: Trial, result: Mapping[str, Any] | None = None) -> dict[str, Mapping[str, Any]]:
    """The reports of all cells of a trial, by default of its last result.

    What ended the whole trial is said of the first cell alone, and holds for the others.
    """
    result = trial.last_result if result is None else result
    first, *others = cell_names(trial)
    ended = {key: result[key] for key in (metrics.STATUS, metrics.REASON) if key in result}
    return {first: result, **{name: result.get(metrics.PACK, {}).get(name, ended) for name in others}}
