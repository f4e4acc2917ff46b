"""Tune's Optuna searcher with the study as its record, whatever was killed in between."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from optuna.trial import Trial as StudyTrial
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from gems_ray.errors import StudyError
from gems_ray.experiments.candidates import COMPLETE, read_trial, search_of, trial_cells
from gems_ray.experiments.cell_folder import ENDED, FAILED, PRUNED
from gems_ray.experiments.check import all_settings
from gems_ray.experiments.objectives import MEASURED, reported_value
from gems_ray.experiments.records import CellResult, TrialRecord
from gems_ray.experiments.run_folder import EXPERIMENT as RECORD
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.space import Params, Space
from gems_ray.experiments.spec import Cell, Experiment, search_domains, without_later_defaults
from gems_ray.experiments.study import StudyPlace, make_sampler
from gems_ray.metrics import EVALUATED, PACK, STEP
from gems_ray.rng import stream_seed
from gems_ray.tune.cell_queue import CellQueue, cell_names, cell_reports
from gems_ray.tune.run_end import RunEnd, error_ends_run
from gems_ray.tune.scheduling import next_trial, write_state_seldom

RUN, EXPERIMENT = "run", "experiment"  # user attributes of trials and of the study
UNSIGNED_FOR = timedelta(minutes=1)
STATES = {COMPLETE: TrialState.COMPLETE, PRUNED: TrialState.PRUNED, FAILED: TrialState.FAIL}


class StudySearch(OptunaSearch):
    """Proposes the cells of trials, one to each trial of Tune.

    A trial of the study may have several cells (seeds, environments); it is told when all of them have ended. The study
    and the run folder together are the whole state: trials of this run that are RUNNING in the study when the searcher
    is made were interrupted, and come first. A study that was lost is made again from the records of the trials, whose
    cells have ended already.

    Args:
        experiment: a search, with its objectives.
        run: its folder.
        place: storage of the study.
        queue: takes the cells.
    Raises:
        StudyError: the study belongs to another search.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, place: StudyPlace, queue: CellQueue) -> None:
        search = search_of(experiment)
        self.end = queue.end
        self._experiment, self._run, self._place, self._queue = experiment, run, place, queue
        self._objectives = search.objectives
        self._points = Space(search_domains(experiment))
        several = len(self._objectives) > 1
        super().__init__(
            space=self._points.suggest,
            metric=list(self._objectives) if several else self._objectives[0],
            mode=["max"] * len(self._objectives) if several else "max",
            storage=place.storage,
            study_name=place.name,
        )
        self._check_study()
        self._restore_records()
        self._enqueue_known_points()
        self._limit = len(self.study.trials) if search.sampler == "grid" else search.trials
        self._interrupted = deque(t for t in self.study.trials if t.state == TrialState.RUNNING and self._is_ours(t))
        self._open: dict[int, tuple[StudyTrial, TrialRecord]] = {}  # trials not told yet, with their records
        self._all_begun = False
        queue.to_come = len(self._interrupted) + max(0, self._to_begin)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a file that stays, where the password of a study's storage must not be."""
        return {}

    @property
    def study(self) -> Study:
        """The Optuna study."""
        return self._ot_study

    def cells_without_result(self) -> list[Cell]:
        """Cells of trials that have ended in the study, whose results were lost since."""
        told = {trial.number for trial in self.study.trials if trial.state.is_finished()}
        records = [record for number, record in self._run.trials().items() if number in told]
        cells = [cell for record in records for cell in self._cells(record.params)[2]]
        return [cell for cell in cells if self._run.cell(cell.name).status not in ENDED]

    @property
    def has_work(self) -> bool:
        """Whether a trial is to begin, or was interrupted."""
        return bool(self._interrupted) or self._to_begin > 0

    @property
    def _to_begin(self) -> int:
        """Trials that have not begun."""
        return self._limit - sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))

    @error_ends_run(Searcher.FINISHED)
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next cell; None while all of them are in work or wait after a failure."""
        while not self.end.stopping:
            if self._queue.full:
                return None
            if (self._all_begun or self._queue.fills_pack) and (config := self._queue.take()):
                return config
            if not self._all_begun:
                self._all_begun = not self._begin_trial(trial_id)
                self._tell_study()
            elif self._queue.busy:
                return None
            else:
                self._tell_study()  # of cells that the queue gave up
                break
        return Searcher.FINISHED

    @error_ends_run(None)
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Shows the curve of a trial that is a single cell in the study."""
        self._report_curve(result)

    @error_ends_run(None)
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study of every trial whose cells have ended; a lost cell leaves its trial open."""
        self._report_curve(result or {})
        self._tell_study()

    def save(self, checkpoint_path: str) -> None:
        """Leaves an empty file for Tune: the study is the record."""
        Path(checkpoint_path).touch()

    def _begin_trial(self, trial_id: str) -> bool:
        if self._interrupted:
            frozen = self._interrupted.popleft()
            self._seed_sampler(frozen.number)  # its settings may not have been drawn yet
            trial = StudyTrial(self.study, frozen._trial_id)
        elif self.has_work:
            self._seed_sampler(len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask()
        else:
            return False
        trial.set_user_attr(RUN, self._place.run)
        self._ot_trials[trial_id] = trial
        params = super().suggest(trial_id)
        assert params is not None
        record, cells = self._record(trial.number, params)
        self._open[trial.number] = (trial, record)
        self._queue.add(cells)
        self._queue.to_come = len(self._interrupted) + max(0, self._to_begin)
        return True

    def _record(self, number: int, params: Params) -> tuple[TrialRecord, list[Cell]]:
        algorithm, settings, cells = self._cells(params)
        names = [cell.name for cell in cells]
        record = TrialRecord(algorithm=algorithm, settings=settings, params=dict(params), cells=names)
        self._run.add_cells(cells)
        self._run.write_trial(number, record)
        return record, cells

    def _cells(self, params: Params) -> tuple[str, dict[str, Any], list[Cell]]:
        algorithm, searched = self._points.decode(params)
        return algorithm, *trial_cells(self._experiment, algorithm, searched)

    def _seed_sampler(self, number: int) -> None:
        """A trial's proposal depends on its number and the trials before: a search goes on alike after a stop."""
        shared = () if self._place.is_private else (self._place.run,)  # writers of one study must not propose the same
        seed = stream_seed(self._experiment.seed[0], "search", number, *shared)
        self.study.sampler = make_sampler(search_of(self._experiment).sampler, seed % 2**32)

    def _tell_study(self) -> None:
        for number, (trial, record) in list(self._open.items()):
            outcome = read_trial(self._run, number, record, self._objectives)
            if outcome.state in STATES:
                values = list(outcome.values) if outcome.state == COMPLETE else None
                self.study.tell(trial, values, state=STATES[outcome.state], skip_if_finished=True)
                del self._open[number]

    def _report_curve(self, result: dict[str, Any]) -> None:
        if len(self._objectives) > 1:
            return
        for trial, record in self._open.values():
            report = _report_of(record.cells[0], result) if len(record.cells) == 1 else {}
            if report and self._has_ended_before(record.cells[0], report):  # its pack goes on without it
                continue
            value = reported_value(report, self._objectives[0])
            if value is not None and (step := int(report[EVALUATED])) not in self._reported_steps(trial):
                trial.report(value, step)

    def _has_ended_before(self, cell: str, report: Mapping[str, Any]) -> bool:
        result = self._run.cell(cell).result()
        return result is not None and result.updates < report.get(EVALUATED, 0)

    def _reported_steps(self, trial: StudyTrial) -> set[int]:
        frozen: FrozenTrial = self._place.storage.get_trial(trial._trial_id)
        return set(frozen.intermediate_values)

    def _check_study(self) -> None:
        """One study holds trials of one search, or its values could not be compared."""
        digest = study_fingerprint(self._experiment)
        if self.study.user_attrs.setdefault(EXPERIMENT, digest) != digest:
            raise StudyError(
                f"study `{self._place.name}` holds the trials of another search: {RECORD} or the file of this one has "
                "changed. Put the old values back, or choose another --name for this one."
            )
        self.study.set_user_attr(EXPERIMENT, digest)

    def _restore_records(self) -> None:
        """Records and cells of this run's trials whose files were lost or torn."""
        self._run.set_damaged_search_records_aside()
        known = self._run.trials()
        for trial in self.study.trials:
            drawn = trial.state not in (TrialState.WAITING, TrialState.RUNNING)
            if trial.number not in known and drawn and self._is_ours(trial):
                self._record(trial.number, trial.params)
        for number, record in known.items():
            cells = self._cells(record.params)[2]
            if [cell.name for cell in cells] != record.cells:
                raise StudyError(
                    f"{self._run.path / RECORD}: changed since the search began, trial {number} has other cells "
                    "(its seed, settings or training differ). Put the old values back, or run the file under another "
                    "--name; nothing in the folder was touched."
                )
            self._run.add_cells(cells)

    def _enqueue_known_points(self) -> None:
        """The trials that were recorded, the defaults, the given points, and for a grid all others."""
        search = search_of(self._experiment)
        known = {trial.number for trial in self.study.trials}
        for number, record in self._run.trials().items():
            # In a study that was lost every trial has its old number again, the ones that repeat others too.
            if number not in known or not self._place.is_private:
                self.study.enqueue_trial(dict(record.params), skip_if_exists=not self._place.is_private)
        points: list[Params] = []
        for algorithm in self._experiment.algorithm:
            settings = all_settings(algorithm, self._experiment.settings.get(algorithm, {}))
            if self._points.contains(algorithm, settings):
                points.append(self._points.encode(algorithm, settings))
        for given in search.initial:
            algorithm = str(given.get("algorithm", self._experiment.algorithm[0]))
            settings = all_settings(algorithm, self._experiment.settings.get(algorithm, {}))
            points.append(self._points.encode(algorithm, {**settings, **given}))
        if search.sampler == "grid":
            points += self._points.every_point()
        for point in points:
            self.study.enqueue_trial(point, skip_if_exists=True)

    def _is_ours(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(RUN)
        if owner is not None or self._place.is_private:
            return self._place.is_private or owner == self._place.run
        # A writer was killed between making the trial and signing it, unless it is just about to sign.
        return trial.datetime_start is None or datetime.now() - trial.datetime_start > UNSIGNED_FOR


def study_fingerprint(experiment: Experiment) -> str:
    """What two searches must have in common to share a study, in twelve digits."""
    facts = without_later_defaults(experiment.as_yaml())
    for name in ("resources", "seed", "tracking"):
        facts.pop(name, None)
    for name in ("trials", "sampler", "initial", "confirm"):
        facts["search"].pop(name)
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def is_complete(experiment: Experiment, run: RunFolder, place: StudyPlace) -> bool:
    """Whether every trial of a search has ended.

    Raises:
        StudyError: the study belongs to another search.
    """
    nothing_runs = CellQueue(run, {}, experiment.resources, lambda progress: None, RunEnd())
    searcher = StudySearch(experiment, run, place, nothing_runs)
    return not searcher.has_work and not searcher.cells_without_result()


class PruningAsha(AsyncHyperBandScheduler):
    """ASHA that leaves a note in the folder of every cell that it stops.

    A cell that is tried again has another trial of Tune; it keeps its place among the others. ASHA looks at the
    identity of a trial only, which is its cell here.

    Args:
        experiment: a search with `asha`.
        run: its folder.
        end: of the Tune run.
        at_once: how many trials the cluster holds.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, end: RunEnd, at_once: int) -> None:
        search = search_of(experiment)
        assert search.asha is not None
        longest = experiment.training.max_timesteps
        super().__init__(
            time_attr=EVALUATED,
            metric=MEASURED[search.objectives[0]],
            mode="max",
            max_t=longest,
            grace_period=min(search.asha.grace_updates, longest),
            reduction_factor=search.asha.reduction_factor,
            stop_last_trials=False,
        )
        self._run, self.end, self._at_once = run, end, at_once

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """The trial that takes the next free process."""
        return next_trial(tune_controller.get_trials(), self._at_once)

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """A cell begins, or is tried again."""
        for name in cell_names(trial):
            super().on_trial_add(tune_controller, SimpleNamespace(trial_id=name))
        write_state_seldom(tune_controller)

    @error_ends_run(TrialScheduler.CONTINUE)
    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's decision; STOP means that better trials take the place."""
        reports = _flat_reports(trial, result)
        stopped = True
        for name, report in reports.items():
            folder = self._run.cell(name)
            if len(reports) > 1 and folder.status in ENDED:  # the pack goes on until all of its cells have ended
                continue
            decision = str(super().on_trial_result(tune_controller, SimpleNamespace(trial_id=name), report))
            stopped &= decision == TrialScheduler.STOP
            if decision == TrialScheduler.STOP and folder.status not in ENDED:
                reason = f"stopped early by ASHA after {report[STEP]} updates"
                folder.write_result(CellResult(status=PRUNED, updates=int(report[STEP]), reason=reason))
        return str(TrialScheduler.STOP if stopped else TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """A cell has ended, or was set back."""
        for name, report in _flat_reports(trial, result).items():
            super().on_trial_complete(tune_controller, SimpleNamespace(trial_id=name), report)


def _flat_reports(trial: TuneTrial, result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The reports of all cells of a trial, from the flat result that Tune gives to schedulers."""
    nested = {name: dict(_report_of(name, result)) for name in cell_names(trial)[1:]}
    return cell_reports(trial, {**result, PACK: {name: report for name, report in nested.items() if report}})


def _report_of(cell: str, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The report of a cell, from the flat result of the trial of Tune that trains it; empty for other cells."""
    if result.get("config/cell") == cell:
        return result
    prefix = f"{PACK}/{cell}/"
    return {key.removeprefix(prefix): value for key, value in result.items() if key.startswith(prefix)}
