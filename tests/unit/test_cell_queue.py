"""How our runs use Tune's own machinery."""

from types import SimpleNamespace

import pytest
from ray.tune.execution.experiment_state import _ExperimentCheckpointManager

from gems_ray.tune.cell_queue import write_state_seldom


@pytest.mark.parametrize("seldom", [False, True])
def test_a_checkpoint_does_not_make_tune_write_the_state_of_all_trials(seldom):
    manager = _ExperimentCheckpointManager(storage=None, checkpoint_period="auto", sync_every_n_trial_checkpoints=1)
    if seldom:
        write_state_seldom(SimpleNamespace(_checkpoint_manager=manager))
    manager.on_trial_checkpoint("a trial")
    assert manager._should_force_sync_up is not seldom
