"""What Tune calls: cells that did not get through are tried again here alone, and no error of ours is lost in Tune."""

import pickle
import shutil
from types import SimpleNamespace

import pytest

from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import FAILED, FINISHED, RUNNING, UNFINISHED
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellResult, Fingerprints
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.tune import cell_queue
from gems_ray.tune.cell_queue import RETRIED, RETRIES, CellQueue, CellSearch
from gems_ray.tune.run_end import RunEnd
from gems_ray.tune.search import PruningAsha
from tests.unit.conftest import MACHINE

SEARCH = {"space": {"td3_bc": {"alpha": {"uniform": [1, 3]}}}, "asha": {"grace_updates": 50, "reduction_factor": 2}}


@pytest.fixture
def run(tmp_path):
    experiment = check_experiment({"environment": "diffuse_mix", "seed": [0, 1, 2, 3]})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    return run


def trial_of(folder):
    return SimpleNamespace(config={"cell": folder.path.name}, last_result={}, trial_id=folder.path.name)


def queue_of(run, watcher, end=None):
    source = SimpleNamespace(fingerprints=Fingerprints())
    return CellQueue(run, {"diffuse_mix": source}, run.experiment().resources, watcher, end or RunEnd())


def report(evaluated, **more):
    """What a worker says of a cell after an evaluation."""
    row = {"seconds": 1.0, "updates_per_second": 1.0, "train/cloning_error": 0.5}
    return {**row, "updates": evaluated, "evaluated_updates": evaluated, "status": "running", "reason": "", **more}


@pytest.fixture
def one(run, monkeypatch):
    """A queue with one cell, the folder of the cell, and what the watcher was told."""
    monkeypatch.setattr(cell_queue, "FIRST_BACK_OFF_SECONDS", 0.0)
    told = []
    queue = queue_of(run, told.append)
    cell = run.experiment().cells()[0]
    queue.add([cell, cell])
    return queue, run.cell(cell.name), told


def lose(queue, trial):
    queue.on_trial_error(0, [], trial)


def set_back(queue, trial):
    trial.last_result = report(50, status="set back", reason="No space left on device")
    queue.on_trial_complete(0, [], trial)


def run_trial(queue, folder, end, evaluated=0):
    """One trial of the cell: it starts, reports how far it has come, and comes to an end."""
    assert queue.take()["cell"] == folder.path.name
    assert queue.take() is None, "one process at a time"
    trial = trial_of(folder)
    queue.on_trial_start(0, [], trial)
    queue.on_trial_result(0, [], trial, report(evaluated))
    end(queue, trial)


def test_a_lost_cell_is_tried_again_and_then_fails(one):
    queue, folder, told = one
    for _ in range(RETRIES):
        run_trial(queue, folder, lose, evaluated=50)
        assert (told[-1].state, told[-1].reason) == (RETRIED, "its process was lost")
    assert folder.result() is None
    run_trial(queue, folder, lose, evaluated=50)
    assert not queue.busy
    result = folder.result()
    assert (result.status, result.updates) == (FAILED, 50)
    assert result.reason.startswith(f"its process was lost, failure {RETRIES + 1} in a row")
    assert (told[-1].state, told[-1].reason) == (FAILED, result.reason)


def test_a_cell_that_was_set_back_stays_unfinished(one):
    queue, folder, told = one
    for _ in range(RETRIES + 1):
        run_trial(queue, folder, set_back)
    assert [change.state for change in told[2::3]] == [RETRIED] * RETRIES + [UNFINISHED]
    assert told[-1].reason == "No space left on device"
    assert folder.result() is None
    assert not queue.busy


def test_losses_and_set_backs_count_together(one):
    queue, folder, _ = one
    for end in [lose, set_back] * (RETRIES // 2 + 1):
        assert queue.busy
        run_trial(queue, folder, end)
    assert not queue.busy


def test_only_an_evaluation_is_progress(one):
    """The cell would go on from its last one, so that updates after it count for nothing."""
    queue, folder, _ = one
    for evaluated in range(3 * RETRIES):
        run_trial(queue, folder, lose, evaluated=evaluated)
    assert queue.busy
    for _ in range(RETRIES):
        run_trial(queue, folder, lose, evaluated=3 * RETRIES - 1)
    assert not queue.busy


def test_a_process_that_is_lost_after_the_last_update(one):
    queue, folder, told = one
    folder.write_result(CellResult(status=FINISHED, updates=1))
    run_trial(queue, folder, lose)
    assert (told[-1].state, told[-1].reason) == (FINISHED, "")
    assert not queue.busy


def test_a_grid_waits_for_the_last_cell(one, monkeypatch):
    queue, folder, _ = one
    search = CellSearch(queue)
    assert search.suggest("first")["cell"] == folder.path.name
    assert search.suggest("second") is None, "the cell may have to be tried again"
    monkeypatch.setattr(cell_queue, "FIRST_BACK_OFF_SECONDS", 60.0)
    lose(queue, trial_of(folder))
    assert search.suggest("third") is None, "not yet"
    monkeypatch.setattr(cell_queue.time, "monotonic", lambda: float("inf"))
    assert search.suggest("fourth")["cell"] == folder.path.name
    folder.write_result(CellResult(status=FINISHED, updates=1))
    queue.on_trial_complete(0, [], trial_of(folder))
    assert search.suggest("fifth") == CellSearch.FINISHED


def test_a_run_that_is_to_stop_starts_nothing(run):
    queue = queue_of(run, lambda progress: None, RunEnd(lambda: True))
    queue.add(run.experiment().cells())
    assert CellSearch(queue).suggest("one") == CellSearch.FINISHED


def test_an_error_of_the_watcher_is_raised_when_tune_has_ended(run):
    told = []

    def watcher(progress):
        told.append(progress)
        raise OSError("No space left on device")

    queue = queue_of(run, watcher)
    queue.add(run.experiment().cells())
    cell = run.cells()[0]
    assert not queue.end.stop_all()
    with pytest.raises(OSError, match="No space left"), queue.end.raised():
        queue.on_trial_start(0, [], trial_of(cell))
        assert queue.end.stop_all()
        queue.on_trial_start(1, [], trial_of(cell))
        raise RuntimeError("what Tune makes of it")
    assert [change.state for change in told] == [RUNNING], "nothing more is tried"


def test_an_error_of_early_stopping_is_raised_when_tune_has_ended(run):
    """The folder of a cell that is to be stopped is gone."""
    end = RunEnd()
    search = {"objectives": ["return"], **SEARCH}
    asha = PruningAsha(check_experiment({"environment": "diffuse_mix", "search": search}), run, end, at_once=1)
    with pytest.raises(RunFolderError, match=r"result\.json"), end.raised():
        for value, cell in zip((4.0, 3.0, 2.0, 1.0), run.cells(), strict=True):
            shutil.rmtree(cell.path)
            cell.path.touch()  # a file where the folder was
            trial = trial_of(cell)
            asha.on_trial_add(None, trial)
            result = {"updates": 50, "evaluated_updates": 50, "eval/return_mean": value}
            assert asha.on_trial_result(None, trial, result) == "CONTINUE"


def test_a_cell_that_is_tried_again_keeps_its_place_in_asha(run):
    """Its values would count twice otherwise, and more cells be stopped than half."""
    experiment = check_experiment({"environment": "diffuse_mix", "search": {"objectives": ["return"], **SEARCH}})
    asha = PruningAsha(experiment, run, RunEnd(), at_once=1)
    best, worse = run.cells()[:2]
    for cell, value, decision in ((best, 2.0, "CONTINUE"), (best, 4.0, "CONTINUE"), (worse, 3.0, "CONTINUE")):
        trial = trial_of(cell)
        trial.trial_id = str(value)
        asha.on_trial_add(None, trial)
        result = {"updates": 50, "evaluated_updates": 50, "eval/return_mean": value}
        assert asha.on_trial_result(None, trial, result) == decision


def test_an_error_of_tune_itself_is_its_own():
    with pytest.raises(RuntimeError, match="mine"), RunEnd().raised():
        raise RuntimeError("mine")
    pickle.dumps(RunEnd(lambda: True))


def test_a_checkpoint_of_a_cell_that_could_not_be_opened_is_passed_over(run):
    queue = queue_of(run, lambda change: None)
    (cell, *_) = run.cells()
    queue.add(run.experiment().cells())
    config = queue.take()
    trial = SimpleNamespace(config=config, last_result={"status": "set back", "reason": "the disk is full"})
    queue.on_trial_start(0, [], trial)
    queue.on_checkpoint(0, [], trial, SimpleNamespace(path=f"{run.storage}/a/trial/checkpoint_0"))
    assert queue.end.error is None
    assert cell.checkpoint() is None
