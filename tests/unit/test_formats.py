"""The files of `export`, whatever stands in a run folder."""

import html.parser
import math
import re
import shutil
from functools import partial

import pandas as pd
import pytest

from gems_ray.experiments.records import CellResult
from gems_ray.results import comparison
from gems_ray.results.export import export_runs
from gems_ray.results.format_names import Format
from gems_ray.results.formats import write_excel, write_long_csv, write_parquet
from gems_ray.results.text_table import TextTable, to_html, to_latex, to_markdown
from tests.unit.test_comparison import make_run

NASTY = (
    "=1+1 <script>alert('x')</script> a|b & 50% $x$ #1 {y} ~ ^ \\end{table} \x1b[2J\x00 new\nline \u202eesrever é 雪"
)


class Tags(html.parser.HTMLParser):
    """Collects the tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def table():
    return TextTable(f"Title {NASTY}", ["name", NASTY], [[NASTY, "1.0 ± 2.0"]], 1, [f"Note {NASTY}."])


def test_html_is_escaped(table):
    page = Tags(to_html(NASTY, [table]))
    assert page.tags == {
        "html", "head", "meta", "title", "style", "body", "h1", "h2", "div", "table", "thead", "tbody", "tr", "th",
        "td", "p",
    }  # fmt: skip
    assert page.text.count("<script>alert('x')</script>") == 6  # title, heading, and four places of the table
    assert "\x1b" not in page.text and "\x00" not in page.text and "\u202e" not in page.text
    assert "\\x1b[2J\\x00 new line" in page.text


def test_latex_is_escaped(table):
    text = to_latex([table])
    body = re.sub(r"\\(begin|end)\{(table|tabular)\}|\\(top|mid|bottom)rule", "", text)
    assert r"\end{table}" not in body
    assert r"\textbackslash{}end\{table\}" in body or r"\textbackslash end\{table\}" in body
    assert r"50\% \$x\$ \#1 \{y\}" in body
    assert r"1.0 $\pm$ 2.0" in body
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    for line in text.splitlines():
        if "50" in line:
            assert not re.search(r"(?<!\\)[%#]", line), line
    lines = [line for line in text.splitlines() if "esrever" in line and "caption" not in line]
    assert len(lines) == 2 and all(len(re.findall(r"(?<!\\)&", line)) == 1 for line in lines)


def test_markdown_is_escaped(table):
    lines = to_markdown([table]).splitlines()
    assert lines[0].startswith("## Title =1+1 &lt;script>")
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 3 for row in rows)
    assert lines[-1].startswith("- Note =1+1 &lt;script>")
    assert not any("\x1b" in line for line in lines)


def test_excel_holds_no_formula_and_no_control_character(tmp_path):
    import openpyxl

    frame = pd.DataFrame({"name": [NASTY, "b"], "number": [1.5, math.nan], "count": pd.array([3, None], "Int64")})
    write_excel(tmp_path / "x.xlsx", {"cells": frame})
    sheet = openpyxl.load_workbook(tmp_path / "x.xlsx")["cells"]
    assert [[cell.value for cell in row] for row in sheet] == [
        ["name", "number", "count"],
        [
            NASTY.replace("\x1b", "\\x1b").replace("\x00", "\\x00").replace("\n", " ").replace("\u202e", "\\u202e"),
            1.5,
            3,
        ],
        ["b", None, None],
    ]
    assert [cell.data_type for cell in sheet[2]] == ["s", "n", "n"]


def test_a_column_of_texts_and_numbers_fits_into_parquet(tmp_path):
    write_parquet(tmp_path / "x.parquet", pd.DataFrame({"a": [0.5, "auto", None], "b": [1, None, True]}))
    assert pd.read_parquet(tmp_path / "x.parquet")["a"].tolist()[:2] == ["0.5", "auto"]


def test_truth_values_with_gaps(tmp_path):
    column = pd.Series([True, None, False], dtype=object)
    write_long_csv(tmp_path / "x.csv", pd.DataFrame({"a": [1.0, 2.0, 3.0], "normalize": column}))
    assert pd.read_csv(tmp_path / "x.csv")["normalize"].tolist()[::2] == [True, False]


def test_signs_that_are_others_in_the_first_fonts_of_latex():
    made = to_latex([TextTable("a", ("p",), [["<0.001"], ["a|b"]], 0, ("1 > 0",))])
    assert r"\textless{}0.001" in made and r"a\textbar{}b" in made and r"1 \textgreater{} 0" in made


def test_all_formats_say_the_same(tmp_path):
    run = make_run(tmp_path / "run")
    for cell in run.cells()[:2]:
        cell.append_metrics({"updates": 0, "eval/return_mean": 1 / 3})
    paths = export_runs([run], tmp_path / "out", list(Format))
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "out").iterdir()} == {
        "table.csv", "cells.csv", "comparison.csv", "overall.csv", "curves.csv",
        "table.parquet", "cells.parquet", "comparison.parquet", "overall.parquet", "curves.parquet",
        "table.md", "comparison.md", "tables.tex", "tables.html", "tables.xlsx",
    }  # fmt: skip
    for name in ("table", "cells", "comparison", "overall"):
        of_csv, of_parquet = (
            pd.read_csv(tmp_path / "out" / f"{name}.csv"),
            pd.read_parquet(tmp_path / "out" / f"{name}.parquet"),
        )
        of_excel = pd.read_excel(tmp_path / "out" / "tables.xlsx", sheet_name=name)
        assert of_csv.columns.tolist() == of_parquet.columns.tolist() == of_excel.columns.tolist()
        for other in (of_parquet, of_excel):
            for column in of_excel.select_dtypes("number").columns.intersection(
                of_parquet.select_dtypes("number").columns
            ):
                assert of_csv[column].tolist() == pytest.approx(other[column].astype(float).tolist(), nan_ok=True), (
                    column
                )
    assert pd.read_csv(tmp_path / "out" / "curves.csv")["eval/return_mean"].tolist() == [0.33333334] * 2
    assert pd.read_parquet(tmp_path / "out" / "curves.parquet")["eval/return_mean"].tolist() == [1 / 3] * 2
    row = ["bc", "60.0", "10.0", "worse"]
    for name in ("comparison.md", "tables.tex", "tables.html"):
        text = (tmp_path / "out" / name).read_text(encoding="utf-8")
        assert all(word in text for word in row), name
        assert "Holm" in text and "Seeds: 0 to 2. Updates: 1,000,000. Test users: 100." in text


def test_a_comparison_is_computed_once(export, tmp_path, monkeypatch):
    """For two environments and all of them together, last and best apart, however many tables show it."""
    make_run(tmp_path / "a")
    calls, compute = [], comparison._against_best
    monkeypatch.setattr(comparison, "_against_best", lambda *args, **more: calls.append(1) or compute(*args, **more))
    code, out, _ = export("a", "--format", "csv", "--format", "markdown", "--format", "html")
    assert code == 0 and "≈" in out
    assert len(calls) == 3 * 2


def test_the_comparison_of_a_search_is_computed_once(export, request, tmp_path, monkeypatch):
    shutil.copytree(request.path.parent / "runs_before_records" / "search", tmp_path / "search")
    calls, compute = [], comparison._against_best
    monkeypatch.setattr(comparison, "_against_best", lambda *args, **more: calls.append(1) or compute(*args, **more))
    code, out, error = export("search")
    assert code == 0, error
    assert "Candidates" in out
    assert len(calls) == 2


def test_reasons_of_failures_do_no_harm(tmp_path):
    run = make_run(tmp_path / "run", {"bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    cell = run.cells()[0]
    cell.write_result(CellResult(status="failed", updates=0, reason=NASTY))
    export_runs([run], tmp_path / "out", list(Format))
    page = Tags((tmp_path / "out" / "tables.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert pd.read_csv(tmp_path / "out" / "cells.csv")["reason"].dropna().tolist() == [NASTY]


@pytest.fixture
def export(command_line, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return partial(command_line, "export")


def test_the_command_writes_what_was_asked_for(export, tmp_path):
    make_run(tmp_path / "a", {"bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    make_run(tmp_path / "b", {"iql": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    code, out, _ = export("a", "--format", "latex", "--format", "html")
    assert code == 0 and "Wrote a/tables.tex" in out and "Wrote a/tables.html" in out
    assert not (tmp_path / "a" / "curves.csv").exists()
    assert export("a", "b")[0::2] == (
        2, "error: export: several runs, and no folder for their tables. Choose one with --output.\n",
    )  # fmt: skip
    code, out, _ = export("a", "b", "--output", "both")
    assert code == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} == {
        "cells.csv", "comparison.csv", "comparison.md", "curves.csv",
    }  # fmt: skip
    assert pd.read_csv(tmp_path / "both" / "comparison.csv")["algorithm"].tolist() == ["bc", "iql"] * 2
    code, _, error = export("a", "--format", "word")
    assert code == 2 and "word" in error and "excel" in error and error.count("\n") == 1


def test_excel_without_its_package_is_one_line(export, tmp_path, monkeypatch):
    make_run(tmp_path / "a", {"bc": [1.0, 2.0, 3.0]}, ("diffuse_mix",))
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    code, _, error = export("a", "--format", "excel")
    assert (code, error) == (
        2,
        "error: format excel: openpyxl is not installed. `pip install 'gems_ray[excel]'` brings it.\n",
    )
