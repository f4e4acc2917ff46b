"""How our runs use Tune's own machinery."""

from types import SimpleNamespace

import pytest
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager
from ray.tune.experiment import Trial

from gems_ray.tune.cell_queue import drop_latest_values, write_state_seldom


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
