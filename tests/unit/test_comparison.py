"""Algorithms against each other: by hand, from run folders that are written by hand, and by simulation (slow)."""

import math

import numpy as np
import pytest
import scipy.stats

from gems_ray.experiments.cell_folder import DIVERGED, FAILED, FINISHED
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellResult, FinalEvaluations, Fingerprints, References
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results import comparison
from gems_ray.results.cells import cells_frame
from gems_ray.results.comparison import Comparison, _against_best, comparison_frame, overall_frame, references_of
from gems_ray.results.comparison_tables import comparison_tables
from gems_ray.results.facts import facts
from gems_ray.results.statistics import holm, welch_test
from gems_ray.results.text_table import to_markdown
from tests.unit.conftest import MACHINE, evaluation

REFERENCES = {"random": 40.0, "oracle": 90.0, "behavior": 240.0}
RETURNS = {"bc": [50.0, 60.0, 70.0], "iql": [200.0, 203.0, 209.0], "td3_bc": [190.0, 230.0, 180.0]}


def finished(last, best, status=FINISHED):
    test = FinalEvaluations(last=evaluation(last), best=evaluation(best))
    prints = Fingerprints(dataset="d1", world="w1")
    return CellResult(status=status, updates=3000, seconds=9.5, best_updates=250, test=test, fingerprints=prints)


def make_run(path, returns=RETURNS, environments=("diffuse_mix", "diffuse_topdown"), **more):
    """A run in which every environment adds one click to the returns of the one before."""
    experiment = check_experiment(
        {"environment": list(environments), "algorithm": list(returns), "seed": [0, 1, 2], **more}
    )
    run = RunFolder.create(path, experiment, MACHINE)
    run.add_cells(experiment.cells())
    for environment in experiment.environment:
        run.write_references(environment, References(**{name: evaluation(v) for name, v in REFERENCES.items()}))
    for cell in experiment.cells():
        value = returns[cell.algorithm][cell.seed] + experiment.environment.index(cell.environment)
        run.cell(cell.name).write_result(finished(value, value + 10))
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "first")


def compare(*runs):
    cells = comparison.tested_cells(runs)
    references = references_of(runs, sorted(cells["environment"].unique()))
    return comparison_frame(cells, references), overall_frame(cells, references)


def tables(*runs):
    found = Comparison(runs)
    return to_markdown(comparison_tables(found, facts(runs, found.cells)))


def test_an_environment_by_hand(run):
    compared, _ = compare(run)
    here = compared[(compared["environment"] == "diffuse_mix") & (compared["checkpoint"] == "last")]
    rows = here.set_index("algorithm")
    assert rows["mean"].tolist() == [60, 204, 200]
    assert rows.loc["bc", "std"] == 10
    assert rows["iqm"].tolist() == [60, 204, 200]  # nothing is left out of three seeds
    assert rows.loc["bc", "score"] == 10
    low, high = rows.loc["bc", ["iqm_low", "iqm_high"]]
    assert low < 50 and high > 70 and (low + high) / 2 == pytest.approx(60)
    welch = [scipy.stats.ttest_ind(RETURNS[a], RETURNS[b], equal_var=False).pvalue for a, b in
             (("bc", "iql"), ("bc", "td3_bc"), ("iql", "td3_bc"))]  # fmt: skip
    corrected = holm(welch)
    assert rows.loc["bc", "p_value"] == pytest.approx(corrected[0])
    assert rows.loc["td3_bc", "p_value"] == pytest.approx(corrected[2])
    assert rows["verdict"].tolist() == ["worse", "best", "not told apart"]
    assert rows.loc["td3_bc", "best_is_better"] == pytest.approx(6 / 9)
    assert rows.loc["iql", "cells"].split() == [cell.path.name for cell in run.cells() if "mix-iql" in cell.path.name]
    best = compared[(compared["environment"] == "diffuse_mix") & (compared["checkpoint"] == "best")]
    assert best["mean"].tolist() == [70, 214, 210]


def test_all_environments_by_hand(run):
    _, overall = compare(run)
    rows = overall[overall["checkpoint"] == "last"].set_index("algorithm")
    assert rows["mean"].tolist() == pytest.approx([10.25, 82.25, 80.25])
    scores = sorted((value + step - 40) / 2 for value in RETURNS["td3_bc"] for step in (0, 1))
    assert rows.loc["td3_bc", "iqm"] == pytest.approx(np.mean(scores[1:-1]))
    assert (rows["environments"] == 2).all() and (rows["seeds"] == 3).all()
    assert rows["verdict"].tolist() == ["worse", "best", "not told apart"]
    assert rows.loc["bc", "best_is_better"] == 1
    assert rows.loc["bc", "p_value"] == pytest.approx(3 * 2 / 400, abs=0.006)  # 3 pairs; 2 of 20 x 20 ways


def test_the_same_folder_gives_the_same_table(run):
    one, again = compare(run), compare(run)
    assert one[0].equals(again[0]) and one[1].equals(again[1])
    cells = comparison.tested_cells([run])
    fewer = comparison_frame(cells[cells["algorithm"] != "iql"], references_of([run], ["diffuse_mix"]))
    columns = ["mean", "iqm_low", "iqm_high"]
    both = [frame[frame["algorithm"] == "bc"][columns].to_numpy().tolist() for frame in (one[0], fewer)]
    assert both[0] == both[1]  # a row more changes no other row's interval


def test_cells_without_results_are_counted_and_named(run):
    cells = {(cell.description.environment, cell.description.algorithm, cell.description.seed): cell
             for cell in run.cells()}  # fmt: skip
    failed = cells["diffuse_mix", "bc", 1]
    failed.write_result(CellResult(status=FAILED, updates=7, reason="a <b>loss</b> is | not finite\x1b[2J"))
    pruned = cells["diffuse_mix", "td3_bc", 0]
    pruned.write_result(CellResult(status="pruned", updates=7))
    cells["diffuse_mix", "iql", 2].write_result(finished(209.0, 219.0, DIVERGED))
    (cells["diffuse_mix", "td3_bc", 1].path / "result.json").unlink()
    gone = cells["diffuse_mix", "td3_bc", 2].path
    for file in gone.iterdir():
        file.unlink()
    gone.rmdir()
    compared, overall = compare(run)
    rows = compared[(compared["environment"] == "diffuse_mix") & (compared["checkpoint"] == "last")]
    rows = rows.set_index("algorithm")
    assert rows["seeds"].tolist() == [2, 3, 0]
    assert rows["failed"].tolist() == [1, 0, 0]
    assert rows["diverged"].tolist() == [0, 1, 0]
    assert (rows.loc["td3_bc", "pruned"], rows.loc["td3_bc", "pending"]) == (1, 1)
    assert math.isnan(rows.loc["td3_bc", "mean"])
    assert rows["verdict"].tolist() == ["worse", "best", ""]
    assert set(overall["algorithm"]) == {"bc", "iql"}
    text = tables(run)
    assert f"- Failed: {failed.path.name} (a &lt;b>loss&lt;/b> is \\| not finite\\x1b[2J)." in text
    assert f"- Pruned: {pruned.path.name}." in text
    assert f"- No folder in run first: {gone.name}." in text
    assert "- Diverged: " in text and "- Pending: " in text
    assert "| 2 of 3 |" in text
    assert "- Cells: 17 (1 diverged, 1 failed, 13 finished, 1 pending, 1 pruned)." in text
    assert "diffuse_mix: dataset expert, fingerprint d1, world w1." in text


def test_cells_that_are_trained_now_are_counted(run):
    begun, waiting = run.cells()[:2]
    for cell in (begun, waiting):
        (cell.path / "result.json").unlink()
        cell.append_metrics({"updates": 0})
    with run.locked():
        run.write_running_cells([begun.path.name])
        compared, _ = compare(run)
        text = tables(run)
    here = compared[(compared["environment"] == "diffuse_mix") & (compared["checkpoint"] == "last")]
    rows = here.set_index("algorithm")
    assert (rows.loc["bc", "running"], rows.loc["bc", "unfinished"]) == (1, 1)
    assert f"- Running: {begun.path.name}." in text
    after, _ = compare(run)
    assert after["running"].sum() == 0, "no process is there any more"


def test_one_seed_is_too_few_to_tell(tmp_path):
    returns = {"bc": [50.0], "iql": [200.0]}
    compared, overall = compare(make_run(tmp_path / "run", returns, seed=[0]))
    assert set(compared["verdict"]) == {"best", "too few seeds"}
    assert compared[["p_value", "iqm_low"]].isna().all(axis=None)
    assert overall[["p_value", "iqm_low"]].isna().all(axis=None)
    text = tables(RunFolder.open(tmp_path / "run"))
    assert "| diffuse_mix | bc | 50.0 | 5 | 50.0 | - |  | 1.00 | too few seeds | 1 |" in text


def test_settings_of_several_runs_are_groups_of_their_own(run, tmp_path):
    more = {"settings": {"td3_bc": {"alpha": 0.5}}}
    other = make_run(tmp_path / "second", {"td3_bc": [238.0, 239.0, 240.0]}, ("diffuse_mix",), **more)
    cells = cells_frame(run, other)
    assert cells.columns.tolist()[:5] == ["run", "environment", "algorithm", "seed", "alpha"]
    assert cells[cells["run"] == "second"]["alpha"].tolist() == [0.5] * 3
    assert cells[cells["run"] == "first"]["alpha"].isna().all()
    compared, overall = compare(run, other)
    rows = compared[(compared["environment"] == "diffuse_mix") & (compared["checkpoint"] == "last")]
    assert list(zip(rows["algorithm"], rows["settings"], strict=True)) == [
        ("bc", ""), ("iql", ""), ("td3_bc", "alpha 0.5"), ("td3_bc", "alpha default"),
    ]  # fmt: skip
    assert rows["verdict"].tolist() == ["worse", "worse", "best", "not told apart"]
    assert set(overall["settings"]) == {"", "alpha default"}  # the other one is of one environment only


def test_settings_that_look_alike_when_rounded_are_groups_of_their_own(tmp_path):
    runs = [
        make_run(
            tmp_path / f"run{number}",
            {"td3_bc": [1.0, 2.0, 3.0]},
            ("diffuse_mix",),
            settings={"td3_bc": {"discount": discount, "batch_size": 1024}},
        )
        for number, discount in enumerate((0.9991, 0.9994))
    ]
    plain = make_run(tmp_path / "plain", {"td3_bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    compared, _ = compare(*runs, plain)
    assert set(compared["settings"]) == {
        "discount 0.9991, batch_size 1024", "discount 0.9994, batch_size 1024", "discount default, batch_size default",
    }  # fmt: skip


def test_a_cell_that_stands_in_two_runs_counts_once(run, tmp_path):
    again = make_run(tmp_path / "deeper" / "first", {"bc": RETURNS["bc"]})
    for cell in again.cells():
        (cell.path / "result.json").unlink()
    both = cells_frame(again, run)
    assert len(both) == 18 + 6
    assert set(both["run"]) == {str(run.path), str(again.path)}  # two folders of one name
    cells = comparison.tested_cells([again, run])
    assert len(cells) == 18
    assert set(cells["status"]) == {FINISHED}
    text = tables(again, run)
    assert "- Cells that stand in several runs and count once in comparisons: 6." in text


def test_damaged_records_of_versions_and_datasets_are_named(run):
    (run.path / "machine.json").write_text("{")
    (run.path / "datasets.json").write_text("[]")
    text = tables(run)
    assert "- Run first: the record of its versions is damaged." in text
    assert "dataset expert, fingerprint d1, world w1." in text
    (run.path / "machine.json").unlink()
    assert "- Run first: the versions of its packages were not recorded." in tables(run)


def test_nothing_yet(tmp_path):
    experiment = check_experiment({"environment": "diffuse_mix"})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    text = tables(run)
    assert "No cell has a return of test users yet." in text
    (name,) = (cell.name for cell in experiment.cells())
    assert f"No folder in run run: {name}." in text
    run.add_cells(experiment.cells())
    assert f"Pending: {name}." in tables(run)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithms", "seeds"), [(2, 3), (5, 3), (5, 10)])
def test_equal_algorithms_are_seldom_told_apart(algorithms, seeds):
    """Any false finding against the best at 5%, which a correction for the pairs with the best alone does not keep."""
    rng, trials, found, lenient = np.random.default_rng(0), 2_000, 0, 0
    for _ in range(trials):
        groups = [[rng.normal(size=seeds)] for _ in range(algorithms)]
        found += any(row["verdict"] == "worse" for row in _against_best(groups, welch=True))
        best = max(range(algorithms), key=lambda index: groups[index][0].mean())
        others = [welch_test(groups[best][0], group[0]) for index, group in enumerate(groups) if index != best]
        lenient += bool((holm(others) <= 0.05).any())
    print(  # noqa: T201
        f"{algorithms} equal algorithms, {seeds} seeds: {found / trials:.1%} of tables name a worse one; "
        f"{lenient / trials:.1%} if the pairs with the best alone are corrected for"
    )
    assert found / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


@pytest.mark.slow
def test_equal_algorithms_are_seldom_told_apart_in_all_environments():
    rng, trials, found = np.random.default_rng(0), 300, 0
    for _ in range(trials):
        groups = [[rng.normal(size=3) * (1 + place) for place in range(3)] for _ in range(4)]
        found += any(row["verdict"] == "worse" for row in _against_best(groups, welch=False))
    print(f"4 equal algorithms, 3 environments, 3 seeds: {found / trials:.1%} of tables name a worse one")  # noqa: T201
    assert found / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
