"""How our runs use Tune's own machinery."""

from types import SimpleNamespace

import pytest
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.experiment import Trial

from gems_ray.tune.cell_queue import drop_latest_values
from gems_ray.tune.scheduling import next_trial, write_state_seldom


@pytest.mark.parametrize("seldom", [False, True])
def test_a_checkpoint_does_not_make_tune_write_the_state_of_all_trials(seldom):
    manager = _ExperimentCheckpointManager(storage=None, checkpoint_period="auto", sync_every_n_trial_checkpoints=1)
    if seldom:
        write_state_seldom(SimpleNamespace(_checkpoint_manager=manager))
    manager.on_trial_checkpoint("a trial")
    assert manager._should_force_sync_up is not seldom


def test_the_latest_values_of_a_trial_that_has_ended_are_dropped_and_its_averages_stay():
    trial = Trial("a trainable", stub=True)
    for value in (1.0, 2.0, 3.0):
        trial.update_last_result({f"metric/{number}": value for number in range(50)})
    before = len(trial.run_metadata.get_json_state())
    drop_latest_values(trial)
    averages = trial.metric_analysis["metric/7"]
    assert (averages["max"], averages["last"], averages["last-5-avg"]) == (3.0, 3.0, 2.0)
    trial.run_metadata.invalidate_cache()
    assert len(trial.run_metadata.get_json_state()) < before / 2


def trial(status: str, *, has_process: bool) -> Trial:
    made = Trial("a trainable", stub=True)
    made.set_status(status)
    if has_process:
        made.temporary_state.ray_actor = object()
    return made


DONE = trial(Trial.TERMINATED, has_process=False)
AT_WORK = trial(Trial.RUNNING, has_process=True)
RESET = trial(Trial.PENDING, has_process=True)  # has got a process that was free, and does not train yet
A, B, C = (trial(Trial.PENDING, has_process=False) for _ in range(3))


@pytest.mark.parametrize(
    ("trials", "at_once", "chosen"),
    [
        ([DONE, A, B, C], 1, A),
        ([DONE, A, B, C], 2, B),  # the process of A is being started
        ([DONE, A, B, C], 3, C),
        ([DONE, AT_WORK, A, B], 2, A),  # both have a process
        ([DONE, RESET, A, B], 2, A),
        ([DONE, AT_WORK, A, B], 3, B),
        ([DONE, A], 2, A),  # nothing else waits, so it need not wait for its own process
        ([DONE, AT_WORK, A], 9, A),
        ([DONE, AT_WORK], 2, None),
        ([], 2, None),
    ],
)
def test_a_free_process_leaves_those_that_are_being_started_to_their_trials(trials, at_once, chosen):
    assert next_trial(trials, at_once) is chosen
