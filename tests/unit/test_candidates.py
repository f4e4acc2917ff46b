"""From trials to candidates and the best of them, from a run folder that is written by hand."""

import json
import math

import pandas as pd
import pytest
from rich.console import Console

from gems_ray import metrics
from gems_ray.errors import RunFolderError
from gems_ray.evaluation.record import OfflineEvaluation
from gems_ray.experiments.candidates import (
    Trial,
    best_first,
    candidate_value,
    candidates,
    pareto_front,
    read_trials,
    trial_cells,
    with_objectives,
    write_best,
)
from gems_ray.experiments.cell_folder import DIVERGED, FAILED, FINISHED, PRUNED
from gems_ray.experiments.check import check_experiment, load_experiment
from gems_ray.experiments.records import (
    CandidateRecord,
    CellResult,
    FinalEvaluations,
    TrialRecord,
    ValidationReturns,
)
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.search import candidates_frame, export, notes, rank_correlation, to_rich, trials_frame
from tests.unit.conftest import MACHINE, evaluation

SPACE = {"td3_bc": {"alpha": {"uniform": [0, 10]}, "hidden_sizes": {"choice": [[64, 64], [256, 256]]}}}


def make_search(search=None, **more):
    data = {"environment": "diffuse_topdown", "seed": 5, "search": {"space": SPACE} | (search or {})} | more
    return with_objectives(check_experiment(data), has_world=True)


def make_run(tmp_path, experiment):
    return RunFolder.create(tmp_path / "run", experiment, MACHINE)


def result(value, fqe=None, coverage=0.5, test=None, status=FINISHED):
    report = {metrics.RETURN_MEAN: value, metrics.COVERAGE: coverage}
    return CellResult(
        status=status,
        updates=100,
        report=report,
        validation=ValidationReturns(last=value, best=value),
        offline=None if fqe is None else estimate(fqe),
        test=None if test is None else FinalEvaluations(last=evaluation(test), best=evaluation(test)),
    )


def estimate(fqe):
    """An estimate whose mean less spread is `fqe`."""
    return OfflineEvaluation(
        fqe_value=fqe + 0.5, fqe_se=0.0, fqe_spread=0.5, behavior_value=30.0, cloning_error=0.2, episodes=4
    )


def add_trial(run, experiment, number, settings, *results, algorithm="td3_bc"):
    """A trial as the search records it; its first cells get the results."""
    whole, cells = trial_cells(experiment, algorithm, settings)
    run.add_cells(cells)
    names = [cell.name for cell in cells]
    run.write_trial(number, TrialRecord(algorithm=algorithm, settings=whole, params=settings, cells=names))
    for name, made in zip(names, results, strict=False):
        run.cell(name).write_result(made)
    return cells


def trial(number, *values, state="complete"):
    return Trial(number, "td3_bc", {}, {}, state, values, ())


def test_states_and_means_of_trials(tmp_path):
    experiment = make_search({"seeds_per_trial": 2, "objectives": ["coverage", "return"]})
    run = make_run(tmp_path, experiment)
    add_trial(run, experiment, 0, {"alpha": 0.0}, result(10.0, coverage=0.2), result(30.0, coverage=0.4))
    add_trial(
        run,
        experiment,
        1,
        {"alpha": 1.0},
        result(10.0),
        CellResult(status=FAILED, updates=1, reason="a loss is not finite"),
    )
    add_trial(run, experiment, 2, {"alpha": 2.0}, result(10.0), CellResult(status=PRUNED, updates=5))
    add_trial(run, experiment, 3, {"alpha": 3.0}, result(10.0))
    add_trial(run, experiment, 4, {"alpha": 4.0}, result(10.0), result(20.0, status=DIVERGED))
    add_trial(
        run, experiment, 10, {"alpha": 5.0}, CellResult(status=PRUNED, updates=1), CellResult(status=FAILED, updates=1)
    )
    trials = read_trials(run, experiment.search.objectives)
    assert [one.number for one in trials] == [0, 1, 2, 3, 4, 10]
    assert [one.state for one in trials] == ["complete", "failed", "pruned", "unfinished", "complete", "failed"]
    assert trials[0].values == pytest.approx((0.3, 20))
    assert trials[4].values == (0.5, 15)
    assert all(one.values == () for one in trials if one.state != "complete")


def test_a_trial_has_the_first_seeds_and_no_test():
    experiment = make_search({"seeds_per_trial": 3}, settings={"td3_bc": {"tau": 0.1, "alpha": 9}})
    settings, cells = trial_cells(experiment, "td3_bc", {"alpha": 0.5})
    assert settings == {"tau": 0.1, "alpha": 0.5}
    assert [cell.seed for cell in cells] == [5, 6, 7]
    assert {cell.experiment.evaluation.test_users for cell in cells} == {0}
    assert all(cell.settings == settings for cell in cells)


def test_objectives_that_are_not_named():
    experiment = check_experiment({"environment": "diffuse_topdown", "search": {"space": SPACE}})
    assert with_objectives(experiment, True).search.objectives == ("return",)
    assert with_objectives(experiment, True).evaluation.holdout == 0
    offline = with_objectives(experiment, False)
    assert (offline.search.objectives, offline.evaluation.holdout) == (("fqe",), 0.2)
    kept = check_experiment(
        {
            "environment": "diffuse_topdown",
            "evaluation": {"holdout": 0.5},
            "search": {"space": SPACE, "objectives": "fqe"},
        }
    )
    assert with_objectives(kept, True) == kept


def test_best_first():
    trials = [trial(0, 5.0), trial(1, 7.0), trial(2, state="failed"), trial(3, 7.0), trial(4, 9.0), trial(5, 6.0)]
    assert [one.number for one in best_first(trials)] == [4, 1, 3, 5, 0]
    assert best_first([trial(0, state="pruned")]) == []


def test_pareto_front_by_hand():
    trials = [
        trial(0, 3.0, 1.0),
        trial(1, 1.0, 3.0),
        trial(2, 2.0, 1.0),  # beaten by 0
        trial(3, 3.0, 1.0),  # the same as 0: neither beats the other
        trial(4, 1.0, 2.0),  # beaten by 1
        trial(5, 2.0, 2.0),
        trial(6, state="unfinished"),
    ]
    assert pareto_front(trials) == {0, 1, 3, 5}
    assert [one.number for one in best_first(trials)] == [0, 3, 5, 1, 2, 4]
    assert pareto_front([]) == set()


def test_candidates_are_the_defaults_and_the_best(tmp_path):
    experiment = make_search({"seeds_per_trial": 2, "confirm": {"candidates": 2, "seeds": 3}})
    run = make_run(tmp_path, experiment)
    for number, value in enumerate([1.0, 4.0, 3.0, 2.0]):
        add_trial(run, experiment, number, {"alpha": float(number)}, result(value), result(value))
    add_trial(run, experiment, 4, {"alpha": 9.0}, CellResult(status=FAILED, updates=1))
    found = candidates(experiment, read_trials(run, ("return",)))
    assert [one.label for one in found] == ["td3_bc default", "trial 1", "trial 2"]
    assert [one.trial and one.trial.number for one in found] == [None, 1, 2]
    assert [cell.seed for cell in found[1].cells] == [7, 8, 9]
    assert {cell.experiment.evaluation.test_users for one in found for cell in one.cells} == {1000}
    assert found[1].as_record() == CandidateRecord(
        label="trial 1",
        trial=1,
        algorithm="td3_bc",
        settings={"alpha": 1.0},
        cells=[cell.name for cell in found[1].cells],
    )
    assert found[0].as_record().settings == {}
    trained = {cell.path.name for cell in run.cells()}
    assert not trained & {cell.name for one in found for cell in one.cells}


def test_a_trial_that_is_the_default_is_listed_once(tmp_path):
    experiment = make_search({"confirm": {"candidates": 3}})
    run = make_run(tmp_path, experiment)
    default = {"alpha": 2.5, "hidden_sizes": [256, 256]}
    add_trial(run, experiment, 0, default, result(9.0))
    add_trial(run, experiment, 1, {"alpha": 1.0}, result(8.0))
    add_trial(run, experiment, 2, {"alpha": 1.0, "tau": 0.005}, result(7.0))  # trial 1, with a default spelled out
    add_trial(run, experiment, 3, {"alpha": 4.0}, result(6.0))
    found = candidates(experiment, read_trials(run, ("return",)))
    assert [one.label for one in found] == ["td3_bc default", "trial 1", "trial 3"]  # three different settings
    assert found[0].trial.number == 0
    assert found[0].as_record().settings == {}


def test_defaults_are_those_of_the_experiment(tmp_path):
    experiment = make_search(
        {"confirm": {"candidates": 1}}, settings={"td3_bc": {"tau": 0.1}}, algorithm=["bc", "td3_bc"]
    )
    run = make_run(tmp_path, experiment)
    add_trial(run, experiment, 0, {"alpha": 1.0}, result(1.0))
    found = candidates(experiment, read_trials(run, ("return",)))
    assert [(one.label, one.as_record().settings) for one in found] == [
        ("bc default", {}),
        ("td3_bc default", {"tau": 0.1}),
        ("trial 0", {"tau": 0.1, "alpha": 1.0}),
    ]
    assert len({cell.name for one in found for cell in one.cells}) == 9


def test_no_candidates(tmp_path):
    experiment = make_search({"confirm": {"candidates": 0}})
    run = make_run(tmp_path, experiment)
    add_trial(run, experiment, 0, {"alpha": 1.0}, result(1.0))
    assert candidates(experiment, read_trials(run, ("return",))) == []
    nothing_ended = candidates(make_search(), [trial(0, state="failed")])
    assert [one.label for one in nothing_ended] == ["td3_bc default"]


@pytest.fixture
def confirmed(tmp_path):
    """Trial 1 was the best of the search; on fresh seeds it is trial 2."""
    experiment = make_search({"confirm": {"candidates": 2, "seeds": 2}})
    run = make_run(tmp_path, experiment)
    default = {"alpha": 2.5, "hidden_sizes": [256, 256]}
    add_trial(run, experiment, 0, default, result(50.0, fqe=1.0))
    add_trial(run, experiment, 1, {"alpha": 1e-05, "hidden_sizes": [64, 64]}, result(90.0, fqe=4.0))
    add_trial(run, experiment, 2, {"alpha": 0.1, "hidden_sizes": [256, 256]}, result(80.0, fqe=2.0))
    add_trial(run, experiment, 3, {"alpha": 7.0, "hidden_sizes": [64, 64]}, result(60.0, fqe=3.0))
    add_trial(run, experiment, 4, {"alpha": 8.0, "hidden_sizes": [64, 64]}, CellResult(status=PRUNED, updates=1))
    trials = read_trials(run, ("return",))
    tried = candidates(experiment, trials)
    fresh = {"td3_bc default": (48.0, 52.0), "trial 1": (60.0, 64.0), "trial 2": (70.0, 76.0)}
    for candidate in tried:
        run.add_cells(candidate.cells)
        for cell, value in zip(candidate.cells, fresh[candidate.label], strict=True):
            run.cell(cell.name).write_result(result(value, fqe=0.0, test=value + 100))
    run.write_candidates([candidate.as_record() for candidate in tried])
    return run, experiment, trials, tried


def test_best_by_fresh_seeds_is_a_grid_of_the_same_cells(confirmed):
    run, experiment, trials, tried = confirmed
    assert [candidate_value(run, candidate, "return") for candidate in tried] == [50, 62, 73]
    write_best(run, experiment, trials, tried)
    path = run.path / "best.yaml"
    assert path.read_text().splitlines()[0].startswith("# Best of the search (trial 2): return 73.0 on these seeds")
    best = load_experiment(path)
    assert best == tried[2].grid
    assert best.search is None
    assert [cell.name for cell in best.cells()] == [cell.name for cell in tried[2].cells]
    assert all(run.cell(cell.name).status == FINISHED for cell in best.cells())


def test_cells_keep_their_names_through_yaml(confirmed):
    """alpha is 1e-05 and hidden_sizes a list."""
    run, experiment, trials, tried = confirmed
    write_best(run, experiment, trials, tried[1:2])
    assert [cell.name for cell in load_experiment(run.path / "best.yaml").cells()] == [c.name for c in tried[1].cells]


def test_a_candidate_without_all_results_is_not_the_best(confirmed):
    run, experiment, trials, tried = confirmed
    run.cell(tried[2].cells[0].name).write_result(CellResult(status=FAILED, updates=1))
    assert candidate_value(run, tried[2], "return") is None
    write_best(run, experiment, trials, tried)
    assert "(trial 1): return 62.0" in (run.path / "best.yaml").read_text()


def test_best_without_candidates_is_the_best_trial(confirmed):
    run, experiment, trials, _ = confirmed
    write_best(run, experiment, trials, [])
    best = load_experiment(run.path / "best.yaml")
    assert "(trial 1): return 90.0" in (run.path / "best.yaml").read_text()
    assert (best.seed, best.evaluation.test_users) == ((5,), 1000)
    assert best.settings == {"td3_bc": {"alpha": 1e-05, "hidden_sizes": [64, 64]}}


def test_no_best_without_a_complete_trial(tmp_path):
    experiment = make_search()
    run = make_run(tmp_path, experiment)
    write_best(run, experiment, [trial(0, state="failed")], [])
    assert not (run.path / "best.yaml").exists()


def test_trials_frame_by_hand(confirmed):
    run, *_ = confirmed
    frame = trials_frame(run)
    assert frame["trial"].tolist() == [0, 1, 2, 3, 4]
    assert frame["state"].tolist() == ["complete"] * 4 + ["pruned"]
    assert frame["alpha"].tolist() == [2.5, 1e-05, 0.1, 7, 8]
    assert frame["return"].tolist()[:4] == [50, 90, 80, 60]
    assert frame["fqe"].tolist()[:4] == [1, 4, 2, 3]
    assert frame.loc[4, ["return", "fqe"]].isna().all()
    assert frame["best"].tolist() == [False, True, False, False, False]
    assert all(run.cell(name).path.is_dir() for name in frame["cells"])


def test_candidates_frame_by_hand(confirmed):
    run, *_ = confirmed
    frame = candidates_frame(run).set_index("candidate")
    assert list(frame.index) == ["td3_bc default", "trial 1", "trial 2"]
    assert frame["search"].tolist() == [50, 90, 80]
    assert frame["fresh_mean"].tolist() == [50, 62, 73]
    assert frame["test_mean"].tolist() == [150, 162, 173]
    assert frame["fresh_std"].tolist() == pytest.approx([8**0.5, 8**0.5, 18**0.5])
    assert frame["test_std"].tolist() == pytest.approx(frame["fresh_std"].tolist())
    assert frame["seeds"].tolist() == [2, 2, 2]
    assert frame["settings"].tolist() == [
        "-",
        "alpha 1e-05, hidden_sizes [64, 64]",
        "alpha 0.1, hidden_sizes [256, 256]",
    ]


def test_candidates_under_way(confirmed):
    run, _, _, tried = confirmed
    for cell in tried[1].cells:
        (run.cell(cell.name).path / "result.json").unlink()
    (run.cell(tried[2].cells[0].name).path / "result.json").unlink()
    frame = candidates_frame(run).set_index("candidate")
    assert frame["seeds"].tolist() == [2, 0, 1]
    assert math.isnan(frame.loc["trial 1", "fresh_mean"])
    assert frame.loc["trial 2", "fresh_mean"] == 76
    assert math.isnan(frame.loc["trial 2", "fresh_std"])


@pytest.mark.parametrize(
    ("fqe", "returns", "expected"),
    [
        ([1, 2, 3], [10, 20, 90], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 4, 2, 3], [50, 90, 80, 60], 1 - 6 * 2 / (4 * 15)),  # ranks 1423 and 1432: differences 0, 0, 1, 1
        ([1, 2, 3, math.nan], [10, 20, 90, 0], 1),
        ([1, 2], [1, 2], None),
        ([1, 2, math.nan], [1, 2, 3], None),
    ],
)
def test_rank_correlation_by_hand(fqe, returns, expected):
    frame = pd.DataFrame({"fqe": fqe, "return": returns})
    assert rank_correlation(frame) == (None if expected is None else pytest.approx(expected))
    assert rank_correlation(frame.drop(columns="fqe")) is None


def test_notes(confirmed):
    run, *_ = confirmed
    lines = notes(run, trials_frame(run))
    assert lines[0] == "5 trials: 4 complete, 1 pruned."
    assert "search: return of the trial" in lines[1]
    assert lines[2] == "fqe ranks the trials like the return in the simulator with Spearman's 0.80."
    assert len(lines) == 3


def test_notes_of_an_offline_search(tmp_path):
    experiment = make_search({"objectives": "fqe"})
    run = make_run(tmp_path, experiment)
    assert notes(run, trials_frame(run))[0] == "0 trials: none."
    add_trial(run, experiment, 0, {"alpha": 1.0}, CellResult(status=FINISHED, updates=1, offline=estimate(3.5)))
    frame = trials_frame(run)
    assert frame["fqe"].tolist() == [3.5]
    assert "return" not in frame
    assert notes(run, frame)[1].startswith("fqe is an estimate")
    assert len(candidates_frame(run)) == 0


def test_exports_agree(confirmed, tmp_path):
    run, *_ = confirmed
    paths = export(run, tmp_path / "out")
    assert [path.name for path in paths] == ["trials.csv", "candidates.csv", "table.md"]
    assert pd.read_csv(paths[0])["return"].tolist()[:4] == [50, 90, 80, 60]
    assert pd.read_csv(paths[1])["fresh_mean"].tolist() == [50, 62, 73]
    row = "| trial 2 | alpha 0.1, hidden_sizes [256, 256] | 80.0 | 73.0 ± 4.2 | 173.0 ± 4.2 | 2 |"
    assert row in paths[2].read_text()


def test_fits_a_terminal_of_80_columns(confirmed):
    run, *_ = confirmed
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    for table in to_rich(run):
        console.print(table)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "73.0 ± 4.2" in text
    shown = [line.split()[0] for line in text.splitlines() if line[:5].strip().isdigit()]
    assert shown == ["1", "2", "3", "0"]


def test_names_in_the_tables_of_a_search_are_shown_as_codes(tmp_path, command_line):
    """YAML takes no escape, but other signs that a terminal obeys; the record of the candidates takes both."""
    of_yaml, of_json = "[red]\x9b\u202e", "\x1b[2J[red]\x07"
    experiment = make_search()
    run = make_run(tmp_path, experiment)
    add_trial(run, experiment, 0, {"alpha": of_yaml}, result(50.0))
    records = []
    for seed, (label, settings) in enumerate([("td3_bc default", {}), (of_json, {of_json: of_json})]):
        again = experiment.with_settings("td3_bc", {"alpha": of_yaml}, [6 + seed], test=True).cells()
        run.add_cells(again)
        run.cell(again[0].name).write_result(result(50.0, test=60.0))
        names = [cell.name for cell in again]
        records.append(CandidateRecord(label=label, trial=0, algorithm="td3_bc", settings=settings, cells=names))
    run.write_candidates(records)
    for command in ("export", "status"):
        code, *outputs = command_line(command, run.path)
        shown = "".join(outputs)
        assert code == 0, shown
        assert r"[red]\x9b\u202e" in shown and r"\x1b[2J[red]\x07" in shown, command
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown), command
    text = (run.path / "table.md").read_text()
    assert r"\x1b[2J[red]\x07" in text
    assert not {"\x1b", "\x07"} & set(text)


def test_trials_of_several_algorithms_fit_a_terminal(tmp_path):
    space = {"td3_bc": {"alpha": {"uniform": [0, 10]}}, "cql": {"critic_learning_rate": {"log_uniform": [1e-4, 1e-2]}}}
    experiment = make_search({"space": space}, algorithm=["td3_bc", "cql"])
    run = make_run(tmp_path, experiment)
    for number, (algorithm, name, value) in enumerate(
        [("td3_bc", "alpha", 2.5), ("cql", "critic_learning_rate", 3e-4), ("cql", "critic_learning_rate", 1e-3)]
    ):
        settings, cells = trial_cells(experiment, algorithm, {name: value})
        run.add_cells(cells)
        params = {"algorithm": algorithm, f"{algorithm}.{name}": value}
        names = [cell.name for cell in cells]
        run.write_trial(number, TrialRecord(algorithm=algorithm, settings=settings, params=params, cells=names))
        run.cell(names[0]).write_result(result(10.0 * number))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(to_rich(run)[0])
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["trial", "settings", "return"]
    assert "algorithm cql, critic_learning_rate 0.001" in lines[2]


def test_damaged_records_name_the_file(confirmed):
    run, *_ = confirmed
    path = run.path / "trials" / "0002.yaml"
    whole = path.read_text()
    for damage in ("", "cells: [a", "- a\n"):
        path.write_text(damage)
        with pytest.raises(RunFolderError, match=r"0002\.yaml.*Remove the file and resume the run"):
            read_trials(run, ("return",))
    path.write_text(whole)
    (run.path / "candidates.json").write_text(json.dumps({"candidates": []})[:-3])
    with pytest.raises(RunFolderError, match=r"candidates\.json"):
        candidates_frame(run)


@pytest.mark.parametrize("objective", ["return", "fqe"])
def test_a_result_without_the_objective_is_no_value(confirmed, objective):
    run, _, trials, _ = confirmed
    trials[0].cells[0].write_result(CellResult(status=FINISHED, updates=1))
    assert read_trials(run, (objective,))[0].state == "failed"


def test_a_torn_result_of_a_trial_names_the_file(confirmed):
    run, _, trials, _ = confirmed
    (trials[0].cells[0].path / "result.json").write_text('{"status": "fin')
    with pytest.raises(RunFolderError, match=r"result\.json"):
        read_trials(run, ("return",))
