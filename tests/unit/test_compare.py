"""Two runs against each other: what differs, by hand, and what the command shows."""

import json

import pytest
import scipy.stats

from gems_ray.cli.main import main
from gems_ray.experiments.records import DatasetFacts
from gems_ray.results.differences import input_differences, only_in, repeated_cells, result_differences
from gems_ray.results.statistics import holm
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
def compare(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["run_tune.py", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


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
