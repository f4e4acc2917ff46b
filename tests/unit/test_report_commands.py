"""The commands plot, report and watch, and the curves of the terminal."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from gems_ray.cli.main import app
from gems_ray.cli.terminal_plot import line_plot
from gems_ray.errors import ConfigError, RunFolderError
from tests.runs import finished_grid


@pytest.fixture
def run(tmp_path):
    return finished_grid(tmp_path / "run", {"bc": 100.0, "iql": 150.0})


def call(*words):
    return CliRunner().invoke(app, list(map(str, words)))


def test_plot_and_report_write_into_the_run_folder_and_say_so(run):
    found = call("plot", run.path, "--plot", "scores", "--format", "svg")
    assert found.exit_code == 0, found.exception
    assert (run.path / "plots" / "scores.svg").is_file()
    assert call("report", run.path).exit_code == 0
    assert "<title>Report of run</title>" in (run.path / "report.html").read_text()


@pytest.mark.parametrize("command", ["plot", "report"])
def test_several_runs_need_a_place_and_a_folder_must_be_a_run(run, tmp_path, command):
    other = finished_grid(tmp_path / "other", {"bc": 1.0})
    found = call(command, run.path, other.path)
    assert isinstance(found.exception, ConfigError)
    assert "--output" in str(found.exception)
    assert isinstance(call(command, tmp_path).exception, RunFolderError)


def test_a_page_is_not_written_over_a_folder_and_not_served_and_written(run, tmp_path):
    assert isinstance(call("report", run.path, "--output", tmp_path).exception, ConfigError)
    assert isinstance(call("report", run.path, "--serve", "--output", "x.html").exception, ConfigError)


def test_watch_shows_curves_and_cells_of_a_run_that_has_ended(run):
    shown = call("watch", run.path).output
    for part in ("6 finished.", "diffuse_mix: return of the validation users", "1,000 updates", "● bc", "● iql"):
        assert part in shown, part


def test_a_line_goes_from_the_lower_left_to_the_upper_right():
    rows = line_plot({"bc": ([0, 100], [0.0, 10.0])}, width=30, height=4).plain.splitlines()
    assert rows[0].startswith("    10.0 ")
    assert rows[3].startswith("     0.0 ")
    assert ord(rows[0][-1]) > 0x2800, "the highest row has the last dots"
    assert ord(rows[3][9]) > 0x2800, "the lowest row has the first ones"
    assert rows[0][9] == " "
    assert rows[4].split() == ["0", "100", "updates"]
    assert rows[5].strip() == "● bc"


def test_a_flat_line_and_a_single_point_are_drawn_and_nothing_is_said_in_words():
    assert "● a" in line_plot({"a": ([5], [1.0])}, 20, 2).plain
    assert line_plot({"a": ([0, 9], [1.0, 1.0])}, 20, 2).plain.count("\n") == 3
    assert line_plot({}, 20, 2).plain == "Nothing has been measured yet."


def test_plots_and_reports_need_neither_ray_nor_torch_and_matplotlib_only_when_drawn():
    code = (
        "import sys, gems_ray.cli.plot, gems_ray.cli.report, gems_ray.cli.watch; "
        "assert 'matplotlib' not in sys.modules; "
        "import gems_ray.results.plots, gems_ray.results.report.server; "
        "sys.exit(bool({'ray', 'torch', 'optuna'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
