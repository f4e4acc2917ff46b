"""The searcher from its study and its records, without Ray: what was lost on one side comes from the other."""

from types import SimpleNamespace

import pytest
from optuna.trial import TrialState

from gems_ray.errors import StudyError
from gems_ray.experiments.candidates import trial_cells, with_objectives
from gems_ray.experiments.cell_folder import FAILED, FINISHED
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellResult, TrialRecord
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.study import open_study
from gems_ray.tune.cell_queue import CellQueue
from gems_ray.tune.run_end import RunEnd
from gems_ray.tune.search import StudySearch, study_fingerprint
from tests.unit.conftest import MACHINE

SPACE = {"td3_bc": {"alpha": {"choice": [1.0, 2.5]}}}


def make_experiment(**more):
    search = {"space": SPACE, "trials": 5, "sampler": "random"}
    return with_objectives(check_experiment({"environment": "diffuse_mix", "search": search} | more), has_world=True)


def queue_of(run):
    return CellQueue(run, {}, run.experiment().resources, lambda progress: None, RunEnd())


def searcher_of(run, experiment):
    return StudySearch(experiment, run, open_study(run, None), queue_of(run))


@pytest.fixture
def run(tmp_path):
    """Four trials that have ended, of which two repeat the others."""
    experiment = make_experiment()
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    for number, alpha in enumerate([2.5, 1.0, 2.5, 1.0]):
        settings, cells = trial_cells(experiment, "td3_bc", {"alpha": alpha})
        run.add_cells(cells)
        names = [cell.name for cell in cells]
        params = {"alpha": alpha}
        run.write_trial(number, TrialRecord(algorithm="td3_bc", settings=settings, params=params, cells=names))
        for name in names:
            report = {"eval/return_mean": alpha}
            run.cell(name).write_result(CellResult(status=FINISHED, updates=1, report=report))
    return run


def test_a_lost_study_has_every_trial_under_its_number(run):
    searcher = searcher_of(run, make_experiment())
    searcher.suggest("one")
    trials = searcher.study.trials
    assert [trial.params["alpha"] for trial in trials[:4]] == [2.5, 1.0, 2.5, 1.0]
    assert [trial.value for trial in trials[:4]] == [2.5, 1.0, 2.5, 1.0]
    assert len(searcher_of(run, make_experiment()).study.trials) == len(trials), "known ones are not enqueued again"


def test_a_search_waits_for_the_cells_that_are_in_work(tmp_path):
    """One of them may have to be tried again, and the study is told of the last one however it ends."""
    experiment = make_experiment(search={"space": SPACE, "trials": 1, "sampler": "random"})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    queue = queue_of(run)
    searcher = StudySearch(experiment, run, open_study(run, None), queue)
    name = searcher.suggest("one")["cell"]
    assert searcher.suggest("two") is None
    run.cell(name).write_result(CellResult(status=FAILED, updates=0, reason="lost"))
    queue.on_trial_error(0, [], SimpleNamespace(config={"cell": name}, last_result={}))
    assert searcher.study.trials[0].state == TrialState.RUNNING
    assert searcher.suggest("three") == StudySearch.FINISHED
    assert searcher.study.trials[0].state == TrialState.FAIL


def test_an_experiment_that_was_changed_by_hand(run):
    """The seed is no part of what a study compares: several writers may have theirs."""
    searcher_of(run, make_experiment())
    with pytest.raises(StudyError, match=r"experiment\.yaml: changed since the search began, trial 0 has other cells"):
        searcher_of(run, make_experiment(seed=7))
    with pytest.raises(StudyError, match="holds the trials of another search"):
        searcher_of(run, make_experiment(training={"max_timesteps": 5}))


def test_a_study_from_before_there_was_a_choice_of_precision_goes_on():
    space = {"td3_bc": {"alpha": {"uniform": [1, 2]}}}
    search = {"environment": "diffuse_mix", "search": {"trials": 3, "space": space}}
    assert study_fingerprint(check_experiment(search)) == "7894194843ae"
    assert study_fingerprint(check_experiment({**search, "training": {"matmul_precision": "high"}})) != "7894194843ae"
