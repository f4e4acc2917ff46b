"""Tune's Optuna searcher with the study as its record, whatever was killed in between."""

import hashlib
import json
from collections import deque
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
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
from gems_ray.experiments.cell_folder import ENDED, FAILED, PRUNED, CellFolder
from gems_ray.experiments.objectives import MEASURED, reported_value
from gems_ray.experiments.records import CellResult, TrialRecord
from gems_ray.experiments.run_folder import EXPERIMENT as RECORD
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.space import Params, Space
from gems_ray.experiments.spec import Cell, Experiment, all_settings, search_domains
from gems_ray.experiments.study import StudyPlace, make_sampler
from gems_ray.metrics import STEP
from gems_ray.rng import stream_seed
from gems_ray.tune.interruption import FirstError, no_error_leaves

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
        describe: what the trainable needs to know of a cell.
        errors: keeps what goes wrong while Tune runs.
    Raises:
        StudyError: the study belongs to another search.
    """

    def __init__(
        self,
        experiment: Experiment,
        run: RunFolder,
        place: StudyPlace,
        describe: Callable[[Cell], dict[str, Any]],
        errors: FirstError,
    ) -> None:
        search = search_of(experiment)
        self.errors = errors
        self._experiment, self._run, self._place, self._describe = experiment, run, place, describe
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
        self._waiting: deque[Cell] = deque()
        self._running: dict[str, str] = {}  # cell by trial of Tune

    @property
    def study(self) -> Study:
        """The Optuna study."""
        return self._ot_study

    def told_too_early(self) -> list[Cell]:
        """Cells of trials that the study knows the end of, whose results were lost since."""
        told = {trial.number for trial in self.study.trials if trial.state.is_finished()}
        records = [record for number, record in self._run.trials().items() if number in told]
        cells = [cell for record in records for cell in self._cells(record.params)[2]]
        return [cell for cell in cells if self._run.cell(cell.name).status not in ENDED]

    @property
    def has_work(self) -> bool:
        """Whether a trial is to begin, or was interrupted."""
        begun = sum(trial.state != TrialState.WAITING for trial in self.study.get_trials(deepcopy=False))
        return bool(self._interrupted) or begun < self._limit

    @property
    def open_cells(self) -> list[str]:
        """Cells that have not ended, of trials that have begun."""
        names = [name for _, record in self._open.values() for name in record.cells]
        return [name for name in names if self._run.cell(name).status not in ENDED]

    @no_error_leaves(None)
    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next cell; FINISHED when every trial has begun."""
        while not self._waiting:
            if not self._begin_trial(trial_id):
                return Searcher.FINISHED
            self._tell_ended()
        cell = self._waiting.popleft()
        self._running[trial_id] = cell.name
        return {"cell": self._describe(cell)}

    @no_error_leaves(None)
    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Shows the curve of a trial that is a single cell in the study."""
        self._report(trial_id, result)

    @no_error_leaves(None)
    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the study of every trial whose cells have ended; a lost cell leaves its trial open."""
        self._report(trial_id, result or {})
        self._running.pop(trial_id, None)
        self._tell_ended()

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
        under_way = {*self._running.values(), *(cell.name for cell in self._waiting)}
        for cell in cells:
            if cell.name not in under_way and self._run.cell(cell.name).status not in ENDED:
                self._waiting.append(cell)
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

    def _tell_ended(self) -> None:
        for number, (trial, record) in list(self._open.items()):
            outcome = read_trial(self._run, number, record, self._objectives)
            if outcome.state in STATES:
                values = list(outcome.values) if outcome.state == COMPLETE else None
                self.study.tell(trial, values, state=STATES[outcome.state], skip_if_finished=True)
                del self._open[number]

    def _report(self, trial_id: str, result: dict[str, Any]) -> None:
        name, value = self._running.get(trial_id), reported_value(result, self._objectives[0])
        if name is None or value is None or len(self._objectives) > 1:
            return
        step = int(result["evaluated_updates"])
        for trial, record in self._open.values():
            if record.cells == [name] and step not in self._reported(trial):
                trial.report(value, step)

    def _reported(self, trial: StudyTrial) -> set[int]:
        frozen: FrozenTrial = self._place.storage.get_trial(trial._trial_id)
        return set(frozen.intermediate_values)

    def _check_study(self) -> None:
        """One study holds trials of one search, or its values could not be compared."""
        facts = self._experiment.as_yaml()
        for name in ("resources", "seed"):
            facts.pop(name)
        for name in ("trials", "sampler", "initial", "confirm"):
            facts["search"].pop(name)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
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


def is_complete(experiment: Experiment, run: RunFolder, place: StudyPlace) -> bool:
    """Whether every trial of a search has ended.

    Raises:
        StudyError: the study belongs to another search.
    """
    searcher = StudySearch(experiment, run, place, lambda cell: {}, FirstError())
    return not searcher.has_work and not searcher.told_too_early()


class PruningAsha(AsyncHyperBandScheduler):
    """ASHA that leaves a note in the folder of every cell that it stops.

    Args:
        experiment: a search with `asha`.
        run: its folder.
        errors: keeps what goes wrong in here.
    """

    def __init__(self, experiment: Experiment, run: RunFolder, errors: FirstError) -> None:
        search = search_of(experiment)
        assert search.asha is not None
        longest = experiment.training.max_timesteps
        super().__init__(
            time_attr="evaluated_updates",
            metric=MEASURED[search.objectives[0]],
            mode="max",
            max_t=longest,
            grace_period=min(search.asha.grace_updates, longest),
            reduction_factor=search.asha.reduction_factor,
            stop_last_trials=False,
        )
        self.errors = errors

    @no_error_leaves(TrialScheduler.CONTINUE)
    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's decision; STOP means that better trials take the place."""
        decision = str(super().on_trial_result(tune_controller, trial, result))
        folder = CellFolder(Path(trial.config["cell"]["folder"]))
        if decision == TrialScheduler.STOP and folder.status not in ENDED:
            reason = f"stopped early by ASHA after {result[STEP]} updates"
            folder.write_result(CellResult(status=PRUNED, updates=int(result[STEP]), reason=reason))
        return decision
