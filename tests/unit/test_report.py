"""The report without a browser: its content, its words, and that nothing in a run folder becomes markup."""

import http.client
import json
import re
import shutil
import socket
import struct
import threading
from contextlib import closing, contextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gems_ray
from gems_ray.errors import ConfigError
from gems_ray.experiments.check import load_experiment
from gems_ray.experiments.readable_run import ReadableRun
from gems_ray.experiments.records import CellResult
from gems_ray.experiments.reproduction import cell_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.report.content import content, embedded, log_end, lowest_and_highest
from gems_ray.results.report.server import ReportServer
from gems_ray.results.report.words import summary, warnings
from gems_ray.results.results import Results
from tests.runs import finished_grid

NASTY = "</script><script>alert(1)</script> & \u2028\x1b[31m\u202e $x$"


@pytest.fixture
def run(tmp_path):
    return finished_grid(tmp_path / "run", {"bc": 100.0, "iql": 150.0})


def results(run):
    return Results([ReadableRun.open(run.path)])


def cell(run, algorithm, seed):
    return next(c for c in run.cells() if (c.description.algorithm, c.description.seed) == (algorithm, seed))


def read(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_holds_what_the_folder_says_and_asks_for_nothing(run, tmp_path):
    page = gems_ray.report(run.path, tmp_path / "page.html").read_text()
    data = read(page)
    assert len(data["cells"]["rows"]) == 6
    header = data["cells"]["header"]
    found = {
        (row[header.index("algorithm")], row[header.index("seed")]): row[header.index("last")]
        for row in data["cells"]["rows"]
    }
    assert found["iql", 2] == 151.0
    assert "default-src 'none'" in page.replace("&#x27;", "'")
    assert not re.search(r'(?:src|href)="(?!#|data:)', page), "a reference to another file"
    assert "gems-ray grid" in data["runs"][0]["again"]


def test_names_reasons_and_logs_never_become_markup(run, tmp_path):
    failed = cell(run, "iql", 0)
    failed.write_result(CellResult(status="failed", updates=1, reason=NASTY))
    failed.add_log(NASTY, "ERROR")
    page = gems_ray.report([run.path], tmp_path / "page.html").read_text()
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "\x1b" not in page
    detail = next(each for each in read(page)["cells"]["details"] if each["reason"])
    assert detail["reason"] == r"</script><script>alert(1)</script> & \u2028\x1b[31m\u202e $x$"
    assert "</script>" in detail["log"]


@given(st.text())
def test_embedded_texts_come_back_and_hold_no_markup(text):
    found = embedded({"text": text})
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found) == {"text": text}


def test_warnings_in_plain_language(tmp_path):
    run = finished_grid(tmp_path / "run", {"bc": 100.0, "iql": 90.0, "td3_bc": 120.0})
    failed, diverged, narrow = cell(run, "iql", 0), cell(run, "td3_bc", 1), cell(run, "td3_bc", 2)
    failed.write_result(CellResult(status="failed", updates=1, reason="a loss is not finite"))
    diverged.write_result(diverged.result().model_copy(update={"status": "diverged"}))
    for each in (cell(run, "td3_bc", 0), diverged, narrow):
        found = each.result()
        best = found.test.best.model_copy(update={"return_mean": 190.0})
        last = found.test.last.model_copy(update={"distinct_slates": 3})
        test = found.test.model_copy(update={"best": best, "last": last})
        each.write_result(found.model_copy(update={"test": test}))
    told = {each.kind: each.text for each in warnings(results(run))}
    assert told["failed"] == "1 of 3 cells of iql in diffuse_mix failed and are in no mean: a loss is not finite"
    assert told["diverged"].startswith("1 of 3 cells of td3_bc in diffuse_mix diverged")
    assert "iql is below plain cloning in diffuse_mix: 90.8 against 100.5 of bc" in told["bc"]
    assert told["seeds"].startswith("iql in diffuse_mix has 2 seeds with a result")
    assert "td3_bc in diffuse_mix returns 190.0, its last one 120.5" in told["peak"]
    assert "shows 3 different ones to all test users, the behaviour agent 120" in told["slates"]


def test_cloning_is_known_where_it_has_settings_of_its_own(tmp_path):
    runs = [
        finished_grid(tmp_path / "one", {"bc": 100.0, "iql": 90.0}),
        finished_grid(tmp_path / "other", {"bc": 110.0}, settings={"bc": {"batch_size": 64}}),
    ]
    told = [each.text for each in warnings(Results([ReadableRun.open(run.path) for run in runs])) if each.kind == "bc"]
    assert len(told) == 1, "one group of bc is not measured by the other"
    assert told[0].startswith(
        "iql is below plain cloning in diffuse_mix: 90.5 against 110.5 of bc: batch_size 64; this is hardly chance"
    )


def test_a_cell_that_is_trained_now_has_not_ended(run):
    (cell(run, "iql", 0).path / "result.json").unlink()
    with run.locked():
        run.write_running_cells([cell(run, "iql", 0).path.name])
        data = content(results(run))
    told = next(each for each in data["warnings"] if each["kind"] == "cells")
    assert told["text"].startswith("1 of 6 cells have not ended")
    status = data["cells"]["header"].index("status")
    assert [row[status] for row in data["cells"]["rows"]].count("running") == 1
    assert "Cells: 6 (5 finished, 1 running)." in data["facts"]


def test_a_cell_that_stands_in_two_runs_has_its_score_in_both(run, tmp_path):
    copy = shutil.copytree(run.path, tmp_path / "copy")
    cells = content(Results([ReadableRun.open(run.path), ReadableRun.open(copy)]))["cells"]
    score = cells["header"].index("score")
    assert [row[score] for row in cells["rows"]].count(None) == 0


def test_a_run_without_any_trouble_has_no_warning(run):
    assert list(warnings(results(run))) == []


def test_the_summary_says_what_is_uncertain(run, tmp_path):
    first = summary(results(run))[0]
    assert "iql has the highest mean: 150.5 clicks per episode" in first
    assert "It is better than bc" in first
    close = finished_grid(tmp_path / "close", {"bc": 100.0, "iql": 100.2})
    assert "cannot be told apart from bc: more seeds may turn this around" in summary(results(close))[0]
    single = finished_grid(tmp_path / "single", {"bc": 100.0, "iql": 150.0}, seeds=1)
    assert "a single seed, so that nothing is known about chance" in summary(results(single))[0]
    assert "too few seeds to compare it with bc" in summary(results(single))[0]


def test_damaged_files_are_named_and_the_rest_is_shown(run, tmp_path):
    (cell(run, "bc", 0).path / "result.json").write_text("{")
    (cell(run, "bc", 1).path / "metrics.csv").write_bytes(b"updates,\xff\xfe\x00\nx,1\n")
    (cell(run, "iql", 1).path / "cell.yaml").write_text("[")
    (run.path / "machine.json").write_text("null")
    (run.path / "datasets.json").write_text("{")
    data = content(results(run))
    assert len(data["cells"]["rows"]) == 5
    gaps = " ".join(each["text"] for each in data["warnings"] if each["kind"] == "gap")
    for name in ("result.json", "metrics.csv: none of its", "cell.yaml", "machine.json", "datasets.json"):
        assert name in gaps, name


def test_runs_of_an_older_version_and_searches_are_shown_together(request, tmp_path):
    folder = request.path.parent / "runs_before_records"
    data = read(gems_ray.report([folder / "grid", folder / "search"], tmp_path / "page.html").read_text())
    assert "run" in data["cells"]["header"]
    assert "Candidates" in [table["title"] for table in data["tables"]]
    assert {run["name"] for run in data["runs"]} == {"grid", "search"}


def test_a_candidate_whose_description_is_damaged_is_left_out(request, tmp_path):
    folder = shutil.copytree(request.path.parent / "runs_before_records" / "search", tmp_path / "search")
    first = RunFolder.open(folder).candidates()[0].cells[0]
    (folder / "cells" / first / "cell.yaml").write_text("[")
    data = content(results(RunFolder.open(folder)))
    (table,) = (table for table in data["tables"] if table["title"] == "Candidates")
    assert table["rows"]
    assert any(first in each["text"] for each in data["warnings"] if each["kind"] == "gap")


def test_an_empty_run_says_so(tmp_path):
    run = finished_grid(tmp_path / "run", {"bc": 1.0})
    for each in run.cells():
        for file in ("metrics.csv", "result.json"):
            (each.path / file).unlink()
    data = content(results(run))
    assert data["summary"] == ["No cell has a return of the test users yet, so nothing can be compared."]
    assert data["curves"]["metrics"] == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(1, 20))
def test_thinned_curves_keep_both_ends_and_both_extremes(values, stretches):
    array = np.array(values)
    kept = lowest_and_highest(array, stretches)
    assert len(kept) <= max(2 * stretches + 2, 0)
    assert (np.diff(kept) > 0).all()
    assert kept[0] == 0
    assert kept[-1] == len(values) - 1
    assert array[kept].min() == array.min()
    assert array[kept].max() == array.max()


def test_the_end_of_a_log_has_whole_lines(run):
    folder = run.cells()[0]
    folder.log.write_text("".join(f"line {number}\n" for number in range(1000)))
    lines = log_end(folder, 100).splitlines()
    assert lines[-1] == "line 999"
    assert all(re.fullmatch(r"line \d+", line) for line in lines)
    folder.log.unlink()
    assert log_end(folder, 100) == ""


def test_the_experiment_of_one_cell_makes_the_same_cell_again(run, tmp_path):
    folder = cell(run, "iql", 1)
    (tmp_path / "one_cell.yaml").write_text("".join(cell_experiment(folder.description, run.experiment())))
    (made,) = load_experiment(tmp_path / "one_cell.yaml").cells()
    assert made.name == folder.path.name


def test_the_server_answers_to_its_own_address_alone(run):
    with ReportServer([run.path]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path, host=None):
            connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
            connection.request("GET", path, headers={"Host": host} if host else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

        status, page = ask("/")
        assert (status, "connect-src" in page) == (200, True)
        status, data = ask("/data.json")
        assert (status, len(json.loads(data)["cells"]["rows"])) == (200, 6)
        assert ask("/", "evil.example")[0] == 403
        assert ask("/experiment.yaml")[0] == 404
        with pytest.raises(ConfigError, match=f"--port {server.server_port}: cannot be used"):
            ReportServer([run.path], server.server_port)
        server.shutdown()


@contextmanager
def served(run):
    """A server, and what asks it: the status of the answer, and its text."""
    with ReportServer([run.path]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(path, method="GET"):
            with closing(http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)) as connection:
                connection.request(method, path)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()

        yield server, ask
        server.shutdown()


@pytest.mark.parametrize("path", ["/nothing", "/../../etc/passwd", "/data.json/", "/%00", "/?x=<script>"])
def test_a_path_that_is_not_there_is_no_trace(run, capfd, path):
    with served(run) as (_, ask):
        assert ask(path) == (404, "There is nothing here.")
        assert ask("/", "POST")[0] == 501
    assert capfd.readouterr() == ("", "")


def test_a_run_that_is_damaged_while_it_is_served_is_told_and_comes_back(run, capfd):
    path = run.path / "experiment.yaml"
    whole = path.read_text()
    with served(run) as (server, ask):
        assert ask("/")[0] == 200
        for damage in (lambda: path.write_text("environment: [diff"), path.unlink):
            damage()
            server._next = 0.0
            for page in ("/", "/data.json"):
                status, text = ask(page)
                assert status == 503
                assert "experiment.yaml" in text and "Traceback" not in text
        path.write_text(whole)
        server._next = 0.0
        for folder in run.cells():
            (folder.path / "cell.yaml").write_text("[")
        (run.path / "references" / "diffuse_mix.json").write_bytes(b"\xff")
        status, text = ask("/data.json")
        assert status == 200
        assert "cell.yaml" in text
    assert capfd.readouterr() == ("", "")


def test_a_browser_that_leaves_early_is_no_trace(run, capfd):
    with served(run) as (server, ask):
        for words in (b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1"):
            with closing(socket.create_connection(("127.0.0.1", server.server_port))) as connection:
                connection.sendall(words)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
        assert ask("/")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_folder_whose_name_is_no_text_is_shown(run, tmp_path):
    moved = run.path.rename(tmp_path / "run\udcff")
    with served(RunFolder(moved)) as (_, ask):
        status, page = ask("/")
    assert status == 200
    assert read(page)["runs"][0]["name"] == r"run\udcff"
    assert r"run\udcff" in gems_ray.report(moved, tmp_path / "page.html").read_text()
