"""Plots: what they show, by the artists of the figures; and that they survive what a run folder may hold."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

import gems_ray
from gems_ray import metrics
from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.experiments.records import CellResult, FinalEvaluations, References, ValidationReturns
from gems_ray.results.curve_means import mean_curves, stretch_ends
from gems_ray.results.plot_names import OF_SEARCHES, PlotFormat, PlotName
from gems_ray.results.plots import draw, fitting_plots, write_plots
from gems_ray.results.results import Results
from tests.runs import finished_grid
from tests.unit.conftest import evaluation, make_run

OLD = Path(__file__).parent / "runs_before_records"
RETURNS = {"bc": (100.0, 110.0, 120.0), "td3_bc": (150.0, 170.0, 210.0)}


@pytest.fixture
def grid(tmp_path):
    """Two algorithms and three seeds with results, and curves of three reports."""
    run = make_run(tmp_path / "grid", algorithm=["bc", "td3_bc"])
    run.write_references(
        "diffuse_mix", References(random=evaluation(30.0), oracle=evaluation(90.0), behavior=evaluation(230.0))
    )
    for cell in run.cells():
        description = cell.description
        last = RETURNS[description.algorithm][description.seed]
        for step, part in ((0, 0.2), (500, 0.6), (1000, 1.0)):
            cell.append_metrics(
                {
                    metrics.STEP: step,
                    metrics.RETURN_MEAN: last * part,
                    metrics.CLONING_ERROR: 0.1,
                    **({metrics.Q_POLICY: 40.0, metrics.Q_BOUND: 90.0} if description.algorithm == "td3_bc" else {}),
                }
            )
        cell.write_result(
            CellResult(
                status="finished",
                updates=1000,
                report=cell.metrics()[-1],
                validation=ValidationReturns(last=last, best=last),
                test=FinalEvaluations(last=evaluation(last), best=evaluation(last)),
            )
        )
    return run


def results(path):
    return Results([ReadableRun.open(path)])


def line(figure, label):
    axis = figure.axes[0]
    return next(drawn for drawn in axis.lines if drawn.get_label() == label)


def test_learning_curves_show_the_mean_over_seeds_and_the_references(grid):
    figure = gems_ray.plot(grid.path)
    drawn = line(figure, "td3_bc")
    assert drawn.get_xdata().tolist() == [0, 500, 1000]
    mean = np.mean(RETURNS["td3_bc"])
    assert drawn.get_ydata().tolist() == pytest.approx([0.2 * mean, 0.6 * mean, mean])
    assert {name: line(figure, name).get_ydata()[0] for name in ("random", "oracle", "behavior")} == {
        "random": 30,
        "oracle": 90,
        "behavior": 230,
    }


def test_a_world_without_a_behaviour_agent(grid):
    grid.write_references("diffuse_mix", References(random=evaluation(30.0), oracle=evaluation(90.0)))
    figure = draw(results(grid.path), PlotName.LEARNING_CURVES)
    assert set(line(figure, "oracle").get_ydata()) == {90.0}


def test_the_interval_is_that_of_students_t(grid):
    curves = mean_curves(results(grid.path).group_curves(metrics.RETURN_MEAN), metrics.RETURN_MEAN)
    row = curves[(curves["group"] == "bc") & (curves["updates"] == 1000)].iloc[0]
    # 100, 110, 120: mean 110, deviation 10; t(0.975, 2) = 4.302653
    assert (row["mean"], row["seeds"]) == (110, 3)
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * 10 / 3**0.5, rel=1e-6)
    assert row["mean"] - row["low"] == pytest.approx(row["high"] - row["mean"])


def test_q_is_drawn_beside_its_bound_for_the_algorithm_that_has_one(grid):
    figure = gems_ray.plot(str(grid.path), "q_bound")
    assert line(figure, "bound").get_ydata()[0] == 90
    assert line(figure, "td3_bc").get_ydata().tolist() == [40, 40, 40]
    assert "bc" not in [drawn.get_label() for drawn in figure.axes[0].lines]


def test_a_profile_falls_from_one_to_zero_at_the_scores(grid):
    drawn = line(gems_ray.plot(grid.path, "profiles"), "td3_bc")
    scores = sorted(100 * (value - 30) / 200 for value in RETURNS["td3_bc"])  # 60, 70, 90
    limits, shares = drawn.get_xdata(), drawn.get_ydata()
    for limit, share in zip(limits, shares, strict=True):
        assert share == pytest.approx(sum(score >= limit for score in scores) / 3)


def test_the_curve_of_a_short_run_stands_at_its_own_updates_beside_a_long_one():
    short, long = [0, 250, 500, 750, 1_000], list(range(0, 1_000_001, 2_000))
    curves = pd.DataFrame(
        [
            {"environment": "diffuse_mix", "group": group, "run": "r", "cell": group, "seed": 0, "updates": step,
             "value": float(step)}
            for group, steps in (("short", short), ("long", long))
            for step in steps
        ]
    )  # fmt: skip
    means = mean_curves(curves, "value")
    found = means[means["group"] == "short"]
    assert found["updates"].tolist() == short
    assert found["mean"].tolist() == short
    assert 50 < (means["group"] == "long").sum() <= 100


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=300), st.integers(2, 50))
def test_stretches_hold_every_report_once_and_none_before_its_end(updates, points):
    given_updates = pd.Series(updates)
    ends = stretch_ends(given_updates, points)
    assert ends.nunique() <= max(points, 1)
    if given_updates.nunique() > points:
        width = (given_updates.max() - given_updates.min()) / (points - 1)
        assert (ends - given_updates >= -0.51).all()
        assert (ends - given_updates <= width + 1).all()
    else:
        assert (ends == given_updates).all()


@pytest.mark.parametrize("name", list(PlotName))
def test_every_plot_draws_something_of_a_search_by_an_older_version(name):
    figure = draw(results(OLD / "search"), name)
    assert isinstance(figure, Figure)
    assert figure.axes or figure.texts, "a picture, or words that say why there is none"


def test_plots_of_searches_are_not_made_of_grids(grid):
    assert not set(fitting_plots(results(grid.path))) & set(OF_SEARCHES)
    assert PlotName.TRIALS in fitting_plots(results(OLD / "search"))


def test_damaged_and_unfinished_cells_are_left_out_and_named(grid):
    cells = grid.cells()
    (cells[0].path / "result.json").write_text('{"status": "fin')
    with (cells[1].path / "metrics.csv").open("a") as file:
        file.write("500,0.1\n1000,")
    (cells[2].path / "cell.yaml").write_text("environment: [\n")
    (cells[3].path / "metrics.csv").write_bytes(b"\x00\xff\n\n")
    (grid.path / "references" / "diffuse_mix.json").write_text("[]")
    read = results(grid.path)
    for name in fitting_plots(read):
        assert draw(read, name).axes or draw(read, name).texts
    damaged = (cells[0].path / "result.json", cells[2].path / "cell.yaml", grid.path / "references")
    for path in damaged:
        assert any(str(path) in gap for gap in read.gaps), path


def test_files_are_the_same_each_time_and_letters_stay_letters(grid, tmp_path):
    read = results(grid.path)
    written = [
        write_plots(read, tmp_path / folder, [PlotName.LEARNING_CURVES], list(PlotFormat)) for folder in ("a", "b")
    ]
    for one, other in zip(*written, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix
    assert "clicks per episode" in (tmp_path / "a" / "learning_curves.svg").read_text()


@pytest.mark.parametrize("plot", [PlotName.PROFILES, PlotName.SCORES, PlotName.CLONING, PlotName.DIVERSITY])
def test_a_plot_that_leaves_groups_out_says_so(tmp_path, plot):
    read = results(finished_grid(tmp_path / "many", {"bc": 100.0, "iql": 150.0}, seeds=5).path)
    read.tested = read.tested.assign(group=[f"group {number}" for number in range(10)])
    figure = draw(read, plot)
    notes = [legend.get_title().get_text() for legend in figure.legends] or [figure.get_supxlabel()]
    assert "The best 8 of 10 are shown." in " ".join(notes[0].split())


def test_a_group_without_the_diagnostic_takes_nobodys_place(tmp_path):
    read = results(finished_grid(tmp_path / "many", {"bc": 100.0, "iql": 150.0}, seeds=5).path)
    tested = read.tested.assign(group=[f"group {number}" for number in range(10)])
    best = tested["last_return"].astype(float).nlargest(2).index
    tested.loc[best, "cloning_error"] = np.nan
    read.tested = tested
    figure = draw(read, PlotName.CLONING)
    drawn = [label for label in figure.axes[0].get_legend_handles_labels()[1] if label.startswith("group")]
    assert len(drawn) == 8


@pytest.mark.filterwarnings("error")
def test_names_with_dollars_markup_and_control_characters_are_drawn_as_they_are(grid, tmp_path):
    name = "$x^$ <b>&\x1b[31m"
    moved = tmp_path / "again"
    shutil.copytree(grid.path, moved)
    read = results(moved)
    shown = read.shown.assign(group=name)
    read.shown = read.tested = shown
    for plot in (PlotName.LEARNING_CURVES, PlotName.SCORES, PlotName.CLONING):
        (path,) = write_plots(read, tmp_path / "out", [plot], [PlotFormat.SVG])
        text = path.read_text()
        assert "$x^$ &lt;b&gt;&amp;" in text
        assert "\x1b" not in text
        assert r"\x1b[31m" in text


def test_an_unknown_plot_is_named(grid):
    with pytest.raises(gems_ray.GemsRayError, match=r"`curves`.*learning_curves"):
        gems_ray.plot(grid.path, "curves")
