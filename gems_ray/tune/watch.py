"""Follows the cells of a Tune run: tells what changes, counts lost processes, ends hopeless cells."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from gems_ray.experiments.cell_folder import ENDED, FAILED, RUNNING, UNFINISHED, CellFolder
from gems_ray.experiments.progress import CellProgress
from gems_ray.experiments.records import CellResult
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.metrics import STEP
from gems_ray.tune.interruption import FirstError, end_tune, no_error_leaves
from gems_ray.tune.trainable import RETRIES, back_off_seconds

RETRIED = "retried"


Watcher = Callable[[CellProgress], None]


class CellWatch(tune.Callback):
    """Tells the watcher about every change of a cell.

    Args:
        run: its folder.
        watcher: called with every change.
        errors: keeps what goes wrong in here.
    """

    def __init__(self, run: RunFolder, watcher: Watcher, errors: FirstError) -> None:
        self.errors = errors
        self._run = run
        self._watcher = watcher
        self._lost: dict[str, int] = {}  # by cell, processes lost in a row without progress in between
        self._updates: dict[str, int] = {}  # by cell, how far it has come
        self.gave_up: set[str] = set()
        self.interrupted: Callable[[], bool] = lambda: False

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing ever reads that back, and a live display cannot be pickled."""
        return {}

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Hands a signal on to Tune, and the end after an error."""
        if self.interrupted() or self.errors.error is not None:
            end_tune()

    @no_error_leaves(None)
    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A process has taken the cell up."""
        self._tell(trial, RUNNING)

    @no_error_leaves(None)
    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """A sign of life."""
        name, updates = self._folder(trial).path.name, int(result.get(STEP, 0))
        if updates > self._updates.get(name, -1):
            self._updates[name] = updates
            self._lost[name] = 0
            trial.config["cell"]["delay_s"] = 0
        self._tell(trial, RUNNING, result)

    @no_error_leaves(None)
    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell has ended, or could not go on."""
        folder = self._folder(trial)
        reason = str(trial.last_result.get("reason") or "")
        if folder.status not in ENDED and reason:
            self.gave_up.add(folder.path.name)
            self._tell(trial, UNFINISHED, trial.last_result, reason)
        elif folder.status in ENDED:
            self._tell(trial, folder.status, trial.last_result)

    @no_error_leaves(None)
    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell's process or node was lost; Tune starts it again, and it waits first."""
        self._count(trial)

    @no_error_leaves(None)
    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell's process or node was lost while it started; Tune does not start it again."""
        self._count(trial)

    def _count(self, trial: Trial) -> None:
        folder = self._folder(trial)
        name = folder.path.name
        if folder.status in ENDED:  # lost after its last update: nothing is missing
            self._tell(trial, folder.status, trial.last_result)
            return
        lost = self._lost[name] = self._lost.get(name, 0) + 1
        if lost <= RETRIES:
            trial.config["cell"]["delay_s"] = back_off_seconds(lost)
            self._tell(trial, RETRIED, trial.last_result, "its process was lost")
            return
        reason = f"its process was lost {lost} times in a row (out of memory? the cell's log tells how far it came)"
        if folder.is_locked():  # believed lost, and still at it
            return
        folder.write_result(CellResult(status=FAILED, updates=max(0, self._updates.get(name, 0)), reason=reason))
        self._tell(trial, FAILED, trial.last_result, reason)

    def _tell(self, trial: Trial, state: str, report: Mapping[str, Any] | None = None, reason: str = "") -> None:
        self._watcher(CellProgress(self._folder(trial).path.name, state, report or {}, reason))

    def _folder(self, trial: Trial) -> CellFolder:
        return self._run.cell(Path(trial.config["cell"]["folder"]).name)
