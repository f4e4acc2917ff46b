"""No error leaves a callback that Tune calls: Tune would wrap it, or start an ended cell again for ever."""

import pickle
import shutil
from types import SimpleNamespace

import pytest

from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import FINISHED
from gems_ray.experiments.records import CellResult
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import check_experiment
from gems_ray.tune.interruption import FirstError, stop_signals
from gems_ray.tune.search import PruningAsha
from gems_ray.tune.watch import CellWatch
from tests.unit.conftest import MACHINE

SEARCH = {"space": {"td3_bc": {"alpha": {"uniform": [1, 3]}}}, "asha": {"grace_updates": 50, "reduction_factor": 2}}


@pytest.fixture
def run(tmp_path):
    experiment = check_experiment({"environment": "diffuse_mix", "seed": [0, 1, 2, 3]})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    return run


def trial_of(folder):
    return SimpleNamespace(config={"cell": {"folder": str(folder.path)}}, last_result={}, trial_id=folder.path.name)


def test_an_error_of_the_watcher_is_raised_when_tune_has_ended(run):
    told = []

    def watcher(progress):
        told.append(progress)
        raise OSError("No space left on device")

    errors = FirstError()
    watch = CellWatch(run, watcher, errors)
    cell = run.cells()[0]
    cell.write_result(CellResult(status=FINISHED, updates=1))
    with pytest.raises(OSError, match="No space left"), errors.raised(), stop_signals():
        watch.on_trial_complete(0, [], trial_of(cell))
        watch.on_trial_complete(1, [], trial_of(cell))
        raise RuntimeError("what Tune makes of it")
    assert len(told) == 1, "nothing more is tried"


def test_an_error_of_early_stopping_is_raised_when_tune_has_ended(run):
    """The folder of a cell that is to be stopped is gone."""
    errors = FirstError()
    search = {"objectives": ["return"], **SEARCH}
    asha = PruningAsha(check_experiment({"environment": "diffuse_mix", "search": search}), run, errors)
    with pytest.raises(RunFolderError, match=r"result\.json"), errors.raised(), stop_signals():
        for value, cell in zip((4.0, 3.0, 2.0, 1.0), run.cells(), strict=True):
            shutil.rmtree(cell.path)
            cell.path.touch()  # a file where the folder was
            trial = trial_of(cell)
            asha.on_trial_add(None, trial)
            result = {"updates": 50, "evaluated_updates": 50, "eval/return_mean": value}
            assert asha.on_trial_result(None, trial, result) == "CONTINUE"


def test_an_error_of_tune_itself_is_its_own():
    with pytest.raises(RuntimeError, match="mine"), FirstError().raised():
        raise RuntimeError("mine")
    pickle.dumps(FirstError())
