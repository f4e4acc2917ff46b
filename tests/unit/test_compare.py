"""Two runs against each other: what differs, by hand, and what the command shows."""

import json
from functools import partial

import pytest
import scipy.stats

from gems_ray.experiments.candidates import trial_cells
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CandidateRecord, DatasetFacts, TrialRecord
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.differences import input_differences, only_in, repeated_cells, result_differences
from gems_ray.results.statistics import holm
from tests.unit.conftest import MACHINE
from tests.unit.test_comparison import RETURNS, finished, make_run

OTHER = {"bc": [150.0, 160.0, 170.0], "iql": RETURNS["iql"], "td3_bc": [190.0, 240.0, 190.0]}


@pytest.fixture
def runs(tmp_path):
    first = make_run(tmp_path / "a")
    second = make_run(tmp_path / "b", OTHER, ("diffuse_mix",), settings={"td3_bc": {"alpha": 0.5}})
    for run, fingerprint in ((first, "d1"), (second, "d2")):
        facts = DatasetFacts(file="x.npz", fingerprint=fingerprint, transitions=400, world_fingerprint="w")
        run.check_datasets({"diffuse_mix": facts})
    machine = json.loads((second.path / "machine.json").read_text())
    (second.path / "machine.json").write_text(json.dumps(machine | {"torch": "3.0"}))
    return first, second


def test_what_they_were_given(runs):
    rows = {(row["part"], row["name"]): (row["a"], row["b"]) for row in input_differences(*runs).to_dict("records")}
    assert rows["experiment", "environment"] == ("[diffuse_mix, diffuse_topdown]", "[diffuse_mix]")
    assert rows["experiment", "settings.td3_bc.alpha"] == ("-", "0.5")
    assert rows["machine", "torch"][1] == "3.0"
    assert rows["data", "diffuse_mix.dataset"] == ("d1", "d2")
    assert rows["reference policies", "diffuse_topdown.random"] == ("40.0 (100 users)", "-")
    assert len(rows) == 4 + 3
    assert input_differences(runs[0], runs[0]).empty


def test_settings_that_differ_in_their_last_digits_are_told(tmp_path):
    returns, places = {"td3_bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",)
    one, other, whole = (
        make_run(tmp_path / str(number), returns, places, settings={"td3_bc": {"alpha": alpha}})
        for number, alpha in enumerate((0.12345671, 0.12345674, 1.0))
    )
    (row,) = input_differences(one, other).to_dict("records")
    assert (row["name"], row["a"], row["b"]) == ("settings.td3_bc.alpha", "0.12345671", "0.12345674")
    again = make_run(tmp_path / "again", returns, places, settings={"td3_bc": {"alpha": 1}})
    assert input_differences(whole, again).empty


def test_what_they_reached(runs):
    frame = result_differences(*runs)
    rows = frame[frame["checkpoint"] == "last"].set_index("algorithm")
    assert rows.index.tolist() == ["bc", "iql", "td3_bc"]  # whatever alpha is: it is what the runs differ in
    assert rows["difference"].tolist() == pytest.approx([100, 0, 20 / 3])
    welch = [scipy.stats.ttest_ind(RETURNS[name], OTHER[name], equal_var=False).pvalue for name in rows.index]
    assert rows["p_value"].tolist() == pytest.approx(holm(welch).tolist())
    assert rows["better"].tolist() == ["B", "neither", "neither"]
    assert rows["b_is_better"].tolist() == pytest.approx([1, 0.5, 6 / 9])
    assert (rows["low"] < rows["difference"]).all() and (rows["difference"] < rows["high"]).all()
    back = result_differences(*reversed(runs))
    assert back[back["checkpoint"] == "last"]["better"].tolist() == ["A", "neither", "neither"]
    assert only_in(*runs) == ["diffuse_topdown bc", "diffuse_topdown iql", "diffuse_topdown td3_bc"]
    assert only_in(*reversed(runs)) == []


def make_search(path, tried, default=None, **more):
    """A search whose candidates have three fresh seeds each: the default settings, and what was tried besides.

    Args:
        path: of the run folder.
        tried: settings of TD3+BC, a candidate each; every one returns ten clicks more than the one before.
        default: what a trial with the default settings tried; None where no trial did.
        more: of the experiment.
    """
    space = {"td3_bc": {"alpha": {"uniform": [0, 10]}, "batch_size": {"choice": [64, 128, 256]}}}
    search = {"space": space, "objectives": "return"}
    experiment = check_experiment({"environment": "diffuse_mix", "search": search} | more)
    run = RunFolder.create(path, experiment, MACHINE)
    records = []
    for number, searched in enumerate([{}, *tried]):
        whole = {**experiment.settings.get("td3_bc", {}), **searched}
        cells = experiment.with_settings("td3_bc", whole, [1, 2, 3], test=True).cells()
        names, trial = [cell.name for cell in cells], number if searched else default and number
        run.add_cells(cells)
        for seed, name in enumerate(names):
            run.cell(name).write_result(finished(100.0 + 10 * number + seed, 200.0))
        if trial is not None:
            params = searched or default
            settings, own = trial_cells(experiment, "td3_bc", params)
            run.add_cells(own)
            record = TrialRecord(
                algorithm="td3_bc", settings=settings, params=params, cells=[cell.name for cell in own]
            )
            run.write_trial(trial, record)
        records.append(CandidateRecord(label=f"{number}", trial=trial, algorithm="td3_bc", settings=whole, cells=names))
    run.write_candidates(records)
    return run


def matched(one, other):
    """By settings, the means of the groups that stand against each other."""
    frame = result_differences(one, other)
    if frame.empty:
        return {}
    rows = frame[frame["checkpoint"] == "last"]
    return {row["settings"]: (row["a_mean"], row["b_mean"]) for row in rows.to_dict("records")}


def test_a_search_against_a_grid_with_one_of_its_settings(tmp_path):
    search = make_search(tmp_path / "search", [{"alpha": 0.5}, {"alpha": 4.0}])
    grid = make_run(
        tmp_path / "grid", {"td3_bc": [7.0, 8.0, 9.0]}, ("diffuse_mix",), settings={"td3_bc": {"alpha": 0.5}}
    )
    assert matched(search, grid) == {"alpha 0.5": (111, 8)}
    assert matched(grid, search) == {"alpha 0.5": (8, 111)}
    assert only_in(search, grid) == ["diffuse_mix td3_bc alpha 4", "diffuse_mix td3_bc alpha default"]
    assert only_in(grid, search) == []


def test_a_default_that_a_search_tried_is_that_of_the_other_run_too(tmp_path):
    search = make_search(tmp_path / "search", [{"alpha": 0.5}], default={"alpha": 2.5})
    grid = make_run(tmp_path / "grid", {"td3_bc": [7.0, 8.0, 9.0]}, ("diffuse_mix",))
    assert matched(search, grid) == {"alpha 2.5": (101, 8)}
    assert only_in(search, grid) == ["diffuse_mix td3_bc alpha 0.5"]


@pytest.mark.parametrize(("first", "second"), [(0.9991, 0.9994), (0.12345671, 0.12345674)])
def test_settings_that_look_alike_when_rounded_are_not_matched(tmp_path, first, second):
    one = make_search(tmp_path / "one", [{"alpha": first}, {"alpha": 0.5}])
    other = make_search(tmp_path / "other", [{"alpha": second}, {"alpha": 0.5}])
    assert matched(one, other) == {"alpha default": (101, 101), "alpha 0.5": (121, 121)}
    assert only_in(one, other) == [f"diffuse_mix td3_bc alpha {first}"]
    assert only_in(other, one) == [f"diffuse_mix td3_bc alpha {second}"]


def test_a_setting_that_only_one_run_varies_tells_its_groups_apart_in_both(tmp_path):
    one = make_search(tmp_path / "one", [{"alpha": 0.5, "batch_size": size} for size in (64, 128)])
    other = make_search(
        tmp_path / "other", [{"alpha": alpha, "batch_size": 128} for alpha in (0.5, 1.0)],
        settings={"td3_bc": {"batch_size": 128}},
    )  # fmt: skip
    assert matched(one, other) == {"alpha 0.5, batch_size 128": (121, 111)}


def test_what_both_searches_hold_fixed_is_what_they_are_compared_by(tmp_path):
    one = make_search(tmp_path / "one", [{"alpha": 0.5}])
    other = make_search(tmp_path / "other", [{"alpha": 0.5}], training={"max_timesteps": 2_000})
    assert matched(one, other) == {"alpha default": (101, 101), "alpha 0.5": (111, 111)}
    assert repeated_cells(one, other) == (0, [])


def test_cells_that_both_trained(runs, tmp_path):
    first, second = runs
    again = make_run(tmp_path / "again")
    assert repeated_cells(first, again) == (18, [])
    cell = again.cells()[3]
    cell.write_result(finished(1.0, 2.0))
    assert repeated_cells(first, again) == (18, [cell.path.name])
    count, different = repeated_cells(first, second)  # those of TD3+BC have other names, for another alpha
    assert count == 6 and all("-bc-" in name for name in different) and len(different) == 3


@pytest.fixture
def compare(command_line):
    return partial(command_line, "compare")


def test_the_command_fits_80_columns(runs, compare):
    first, second = runs
    code, out, _ = compare(first.path, second.path)
    assert code == 0
    lines = out.splitlines()
    assert max(len(line) for line in lines if not line.startswith(("A: ", "B: "))) <= 80
    row = next(line for line in lines if line.startswith("bc"))
    assert " ".join(row.split()) == "bc 60.0 ± 10.0 160.0 ± 10.0 +100.0 76.9 to 123.1 <0.001 B"
    assert "Seeds: 3 of A, 3 of B." in out
    assert "…" not in out
    code, out, _ = compare(first.path, first.path)
    assert "Nothing: experiment, versions, datasets and reference policies are the same." in out
    assert "18 cells of one name were tested in both, all of them with the same returns." in out


def test_runs_with_nothing_in_common_or_without_results(runs, compare, tmp_path):
    other = make_run(tmp_path / "other", {"cql": [1.0, 2.0, 3.0]}, ("diffuse_divpen",))
    for cell in other.cells():
        (cell.path / "result.json").unlink()
    code, out, _ = compare(runs[1].path, other.path)
    assert code == 0
    assert "Nothing to compare" in out and "Only in B: diffuse_divpen cql." in out
    code, out, _ = compare(other.path, other.path)
    assert code == 0 and "unknown" in out
    code, _, error = compare(runs[0].path, tmp_path)
    assert code == 2 and "not a run folder" in error and error.count("\n") == 1


def test_names_are_no_markup(tmp_path, compare):
    run = make_run(tmp_path / "a", {"bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    machine = json.loads((run.path / "machine.json").read_text())
    (run.path / "machine.json").write_text(json.dumps(machine | {"host": "[red]\x1b[2Jx"}))
    other = make_run(tmp_path / "b", {"bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    code, out, _ = compare(run.path, other.path)
    assert code == 0
    assert "[red]" in out and "\x1b" not in out
