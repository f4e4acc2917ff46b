"""The learning curves of all cells: read fast, and the same numbers as line by line."""

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gems_ray import metrics
from gems_ray.results.curves import curves_frame, metrics_frame
from tests.unit.conftest import make_run

HEADER = "updates,seconds,eval/return_mean"


@pytest.fixture
def cell(run):
    return run.cells()[0]


def write(cell, *lines, end="\n"):
    (cell.path / "metrics.csv").write_bytes(("\n".join([HEADER, *lines]) + end).encode())


def rows(run):
    return curves_frame([run])[["updates", "seconds", "eval/return_mean"]].to_numpy().tolist()


def test_whole_lines(run, cell):
    write(cell, "0,,40", "50,1.5,45.5", "100,3,nan", "150,4,inf")
    found = rows(run)
    assert found[1] == [50, 1.5, 45.5]
    assert math.isnan(found[0][1]) and math.isnan(found[2][2]) and math.isnan(found[3][2])


@pytest.mark.parametrize(
    "lines",
    [
        ["0,1,40", "50,2,45", "100,3"],  # cut off
        ["0,1,40", "50,2,45", "100,3,4,5"],
        ["0,1,40", "50,2,45", "100,3,x"],
        ["0,1,40", "x,2,45", "50,2,45"],
        ["0,1,40", "50,2,45", "50,2,45"],  # repeated
        ["0,1,40", "50,2,44", "50,2,45"],  # the last one counts
        ["50,2,45", "0,1,40"],  # out of order
        ["0,1,40", "50,2,45", ",3,50"],
        ["0,1,40", '50,2,"45"', "50,2,4_5"],
    ],
    ids=str,
)
def test_lines_that_are_torn_or_repeated(run, cell, lines):
    write(cell, *lines)
    assert rows(run) == [[0, 1, 40], [50, 2, 45]]


def test_a_last_line_that_was_cut_off(run, cell):
    write(cell, "0,1,40", "50,2,45", "100,3,50", end="")
    assert rows(run) == [[0, 1, 40], [50, 2, 45]]
    assert [report["updates"] for report in cell.metrics()] == [0, 50]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\x00\xff\xfe\n1,2\n",
        b"a,b\n1,2\n",
        b"updates,updates\n1,2\n",
        b"updates,\xff\n1,2\n",
        b"updates,a\n99999999999999999999,1\n",
        b"updates,a\n1,9007199254740993\n2",
        b"updates,a\n1," + b"9" * 400 + b"\n",
    ],
)
def test_files_that_hold_something_else(run, cell, content):
    (cell.path / "metrics.csv").write_bytes(content)
    assert len(curves_frame([run])) <= 1


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.binary(max_size=40))
def test_whatever_the_file_holds_the_fast_way_reads_what_the_slow_one_does(run, cell, content):
    (cell.path / "metrics.csv").write_bytes(f"{HEADER}\n0,1,40\n".encode() + content)
    last = {report["updates"]: report for report in cell.metrics()}
    frame = curves_frame([run])
    assert frame["updates"].tolist() == sorted(last)
    for row in frame.to_dict("records"):
        report = last[row["updates"]]
        assert {k: v for k, v in row.items() if k in HEADER.split(",") and v == v} == report


def test_cells_of_several_runs_with_their_settings(tmp_path):
    runs = [make_run(tmp_path / name, settings={"td3_bc": given} if given else {})
            for name, given in (("a", {"alpha": 1}), ("b", {"alpha": 0.5, "hidden_sizes": [8, 8]}))]  # fmt: skip
    for number, run in enumerate(runs):
        for folder in run.cells():
            folder.append_metrics({metrics.STEP: 0, metrics.RETURN_MEAN: 40.0 + number})
            folder.append_metrics({metrics.STEP: 9, metrics.Q_POLICY: 7})
    frame = curves_frame(runs)
    assert frame.columns.tolist() == [
        "run", "cell", "environment", "algorithm", "seed", "alpha", "hidden_sizes",
        metrics.STEP, metrics.RETURN_MEAN, metrics.Q_POLICY,
    ]  # fmt: skip
    assert frame["run"].tolist() == ["a"] * 6 + ["b"] * 6
    assert frame["alpha"].tolist() == [1] * 6 + [0.5] * 6
    assert frame["hidden_sizes"].tolist()[-1] == "[8, 8]"
    assert frame["hidden_sizes"].isna().tolist() == [True] * 6 + [False] * 6
    assert frame[metrics.STEP].tolist() == [0, 9] * 6
    single = metrics_frame(runs[1])
    assert "run" not in single and "alpha" not in single
    assert single[metrics.RETURN_MEAN].dropna().tolist() == [41] * 3


def test_no_curves_yet(run):
    assert curves_frame([run]).columns.tolist() == ["run", "cell", "environment", "algorithm", "seed", "updates"]
    assert curves_frame([]).empty
