"""What reaches the terminal."""

import pytest

from gems_ray.cli.console import visible
from gems_ray.cli.main import print_error
from gems_ray.errors import ConfigError, DatasetError
from gems_ray.experiments.records import CellResult


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ± é 雪", "plain ± é 雪"),
        ("two\nlines\tand a tabulator", "two\nlines\tand a tabulator"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\r\x07\x7f\x9b", "\\r\\x07\\x7f\\x9b"),
        ("\u202eesrever", "\\u202eesrever"),
        ("no text \udcff", "no text \\udcff"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (DatasetError("a\nb: no such", ("x\ny", 1)), 1),
        (ConfigError("one\nmistake", "another"), 2),
        (OSError("a\nb"), 1),
        ("a\nb", 1),
    ],
)
def test_what_an_error_quotes_does_not_break_its_line(error, lines, capsys):
    print_error(error)
    assert capsys.readouterr().err.count("\n") == lines


def test_nothing_in_a_run_folder_moves_the_cursor(run, command_line, tmp_path):
    """The name of the folder, the reason of a failure, a log, an error."""
    folder = run.path.rename(tmp_path / "red\x1b[31m")
    run = type(run)(folder)
    cell = run.cells()[0]
    cell.write_result(CellResult(status="failed", updates=1, reason="why\x1b]0;title\x07"))
    cell.add_log("a line\x1b[2J")
    for arguments in (
        ["status", folder], ["status", "--storage", tmp_path], ["logs", folder, "seed0"], ["logs", folder, "none\x1b"],
        ["export", tmp_path / "no\x1b"],
    ):  # fmt: skip
        _, *outputs = command_line(*arguments)
        shown = "".join(outputs)
        assert "\\x1b" in shown, arguments
        assert "\x1b" not in shown, arguments
        assert "\x07" not in shown
