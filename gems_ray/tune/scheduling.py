"""Which trial of Tune gets a process that has become free, and how often Tune writes down its own state."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler


class InOrder(FIFOScheduler):
    """Trials in the order in which they were handed out.

    Args:
        at_once: how many of them the cluster holds.
    """

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self._at_once = at_once

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A cell begins, or is tried again."""
        super().on_trial_add(tune_controller, trial)
        write_state_seldom(tune_controller)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        """The trial that takes the next free process."""
        return next_trial(tune_controller.get_trials(), self._at_once)


def next_trial(trials: list[Trial], at_once: int) -> Trial | None:
    """The first trial for which no process is being started; where there is none, the last one that waits.

    Tune asks for processes for all trials that wait, and Ray starts them in this order. When a process becomes free,
    Tune gives it to the trial that its scheduler chooses, and ends the process that was being started for that trial.
    Where cells take less time than the start of a process, no further process would ever be ready.

    Args:
        trials: of the run, in the order in which they were handed out.
        at_once: how many of them the cluster holds.
    """
    going_on = [trial for trial in trials if not trial.is_finished()]
    waiting = [trial for trial in going_on if trial.temporary_state.ray_actor is None]
    free = 1  # that no trial has
    starting = max(0, at_once - free - (len(going_on) - len(waiting)))
    return waiting[: starting + 1][-1] if waiting else None


def write_state_seldom(tune_controller: Any) -> None:
    """Lets Tune write its state of all trials for a twentieth of its time at most.

    Where old checkpoints are removed, it would write and send all of it after every checkpoint of any trial, so that
    what a cell costs grows with the number of cells (benchmarks/many_cells.py). No run reads that state.
    """
    manager = getattr(tune_controller, "_checkpoint_manager", None)  # a Ray without it is slower, and no worse
    if manager is not None:
        manager._sync_every_n_trial_checkpoints = None
