"""The report in a real browser: what a reader can do with it, on a small run and on a large one."""

import json
import shutil
import struct
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
from playwright.sync_api import Page

import gems_ray
from gems_ray import metrics
from gems_ray.experiments.records import CellResult
from gems_ray.results.report.server import ReportServer
from tests.browser import axe
from tests.runs import finished_grid

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PHONE = {"width": 390, "height": 844}
DESK = {"width": 1400, "height": 1000}
NAME = "<img src=x onerror=alert(1)>\x1b[31m $&\u202e"


@dataclass
class Opened:
    """A page, and what it should not do."""

    page: Page
    complaints: list = field(default_factory=list)
    requests: list = field(default_factory=list)


@pytest.fixture
def show(browser):
    """Opens a report as a file, in a context of its own."""
    contexts = []

    def opened(path, **options):
        context = browser.new_context(**({"viewport": DESK} | options))
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.complaints.append(message.text))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: found.complaints.append(dialog.message))
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.goto(path if isinstance(path, str) else path.as_uri())
        if path != "about:blank":
            found.page.locator("#table-cells tbody tr").first.wait_for()
        return found

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def axe_script(tmp_path_factory):
    return axe.fetch(tmp_path_factory.mktemp("axe"))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Nine cells: three algorithms with three seeds; one has failed, one has diverged, one is not finished."""
    folder = tmp_path_factory.mktemp("small")
    run = finished_grid(folder / "nine", {"bc": 100.0, "iql": 150.0, "td3_bc": 90.0}, reports=20)
    cells = {(cell.description.algorithm, cell.description.seed): cell for cell in run.cells()}
    cells["td3_bc", 0].write_result(CellResult(status="failed", updates=40, reason=f"a loss is not finite {NAME}"))
    cells["td3_bc", 0].add_log(f"critic_loss is not finite {NAME}", "ERROR")
    diverged = cells["td3_bc", 1].result().model_copy(update={"status": "diverged"})
    cells["td3_bc", 1].write_result(diverged)
    (cells["iql", 2].path / "result.json").unlink()
    return gems_ray.report(run.path, folder / "small.html")


def column(page, name):
    """The texts of a column of the table of cells, of the rows that can be seen."""
    index = page.locator("#table-cells thead th").all_inner_texts().index(name)
    return page.evaluate(
        "index => [...document.querySelectorAll('#table-cells tbody tr:not(.details):not([hidden])')]"
        ".map(row => row.cells[index].innerText)",
        index,
    )


def check_accessibility(opened, script):
    opened.page.evaluate(script)
    found = opened.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert not found, json.dumps([(each["id"], each["nodes"][0]["html"]) for each in found], indent=1)


def check_quiet(opened):
    assert opened.complaints == []
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "about:"))] == []
    assert len([url for url in opened.requests if url.startswith("file:")]) == 1, "the page itself"


def test_a_reader_sorts_filters_and_finds_why_a_cell_failed(show, small):
    opened = show(small)
    page = opened.page
    page.get_by_role("button", name="last", exact=True).last.click()
    numbers = [float(text) for text in column(page, "last") if text != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert column(page, "last")[-1] == "–", "nothing stands last"
    assert page.locator("#table-cells th[aria-sort=descending]").inner_text() == "last"
    page.get_by_role("button", name="last", exact=True).last.click()
    assert [float(text) for text in column(page, "last") if text != "–"] == numbers[::-1]

    page.get_by_label("Search").fill("not finite")
    assert page.get_by_text("1 of 9 cells", exact=True).is_visible()
    page.get_by_label("Search").fill("")
    page.locator("#filter-status").select_option("failed")
    assert column(page, "status") == ["failed"]
    page.get_by_role("button", name="Details of").and_(page.locator(":visible")).click()
    details = page.locator("tr.details")
    assert "a loss is not finite <img src=x onerror=alert(1)>\\x1b[31m" in details.inner_text()
    assert "critic_loss is not finite" in details.locator("pre").first.inner_text()
    assert "algorithm: td3_bc" in details.locator("pre").last.inner_text()
    page.locator("#filter-status").select_option("")
    assert len(column(page, "status")) == 9
    check_quiet(opened)


def test_a_p_value_too_small_to_be_written_stands_below_all_others(show, small):
    page = show(small).page
    texts = ["0.001", "<0.001", "", "0.37", "<0.001", "1.00", "0.02"]
    page.evaluate(
        """rows => {
            const row = index => [element("tr", {}, ...cellsOf(rows[index], 1))];
            const { box, show } = sortableTable(
                { id: "own", title: "own", header: ["row", "p"], left: 1, rows, kept: {}, row });
            document.querySelector("main").prepend(box);
            show();
        }""",
        [[str(number), text] for number, text in enumerate(texts)],
    )

    def sorted_texts():
        page.locator("#own-1").click()
        return page.locator("#own tbody tr td:last-child").all_inner_texts()

    falling = ["1.00", "0.37", "0.02", "0.001", "<0.001", "<0.001", ""]
    assert sorted_texts() == falling
    assert sorted_texts() == [*reversed(falling[:-1]), ""]


def test_a_group_with_a_single_report_is_drawn(show, tmp_path):
    run = finished_grid(tmp_path / "run", {"bc": 100.0, "iql": 150.0}, reports=20)
    for cell in run.cells():
        if cell.description.algorithm == "bc":
            lines = (cell.path / "metrics.csv").read_text().splitlines()
            (cell.path / "metrics.csv").write_text("\n".join(lines[:2]) + "\n")
    page = show(gems_ray.report(run.path, tmp_path / "page.html")).page
    ends = page.locator("#chart-0 circle.end")
    assert ends.count() == 2
    box, picture = ends.first.bounding_box(), page.locator("#chart-0 > svg").bounding_box()
    assert box["width"] > 2 and picture["x"] < box["x"] < picture["x"] + picture["width"]
    assert "bc (until 0)" in page.locator("#chart-0 table").inner_text(), "what is read is not of these updates"


def test_warnings_and_summary_say_what_is_uncertain(show, small):
    opened = show(small)
    text = opened.page.locator("#summary").inner_text()
    for part in ("iql has the highest mean", "Failed:", "Diverged:", "Below cloning:", "Few seeds:", "Not complete:"):
        assert part in text, part
    assert opened.page.locator("img").count() == 0, "markup in a name is text"


def test_a_pointer_and_the_keyboard_read_values_off_the_curves(show, small):
    opened = show(small)
    page = opened.page
    reading = page.locator("#chart-0 table")
    end = reading.inner_text()
    page.locator("#chart-0 > svg").scroll_into_view_if_needed()
    box = page.locator("#chart-0 > svg").bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 50)
    start = reading.inner_text()
    assert "After 0 updates" in start
    assert start != end
    page.locator("#chart-0-slider").focus()
    page.keyboard.press("ArrowRight")
    assert "After 0 updates" not in reading.inner_text()
    page.keyboard.press("End")
    assert reading.inner_text() == end

    page.get_by_role("checkbox", name="td3_bc").uncheck()
    assert "td3_bc" not in reading.inner_text()
    assert page.locator("#chart-0 path.curve").count() == 2
    page.get_by_role("checkbox", name="every seed").check()
    assert page.locator("#chart-0 path.seed").count() == 6
    page.locator("#metric").select_option("train/q_policy")
    assert "bound" in page.locator("#chart-0 > svg").inner_html()
    check_quiet(opened)


def test_everything_can_be_reached_with_the_keyboard_alone(show, small):
    opened = show(small)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    seen = []
    for _ in range(200):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        if seen[-1] == "open-0":
            break
    assert {"theme", "metric", "group-0", "every-seed", "chart-0-slider", "search", "table-cells-0"} <= set(seen)
    page.keyboard.press("Enter")
    assert page.locator("#open-0").get_attribute("aria-expanded") == "true"
    page.keyboard.press("Space")
    assert page.locator("tr.details").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_stands_in_the_way_of_anybody(show, small, axe_script, scheme, viewport, tmp_path):
    opened = show(small, color_scheme=scheme, viewport=viewport, bypass_csp=True)
    page = opened.page
    page.locator("#open-0").click()
    page.get_by_role("checkbox", name="every seed").check()
    page.add_style_tag(content="section { content-visibility: visible !important }")  # what is skipped is not checked
    check_accessibility(opened, axe_script)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], "no scrolling to the side"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 24, 29)" if scheme == "dark" else "rgb(255, 255, 255)")
    page.screenshot(path=tmp_path / "page.png")
    data = (tmp_path / "page.png").read_bytes()
    assert struct.unpack_from(">II", data, 16) == (viewport["width"], viewport["height"])
    assert len(data) > 20_000, "a picture of one colour is none"


def test_the_theme_can_be_chosen_and_paper_is_white(show, small):
    opened = show(small, color_scheme="light")
    page = opened.page
    page.get_by_role("button", name="Dark").click()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 29)"
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator("#table-cells").is_visible()


def test_nothing_else_can_be_executed_on_the_page(show, small):
    opened = show(small)
    with pytest.raises(Exception, match="Content Security Policy|EvalError|violates"):
        opened.page.add_script_tag(content="window.foreign = 1")
    assert opened.page.evaluate("window.foreign === undefined")


@pytest.fixture(scope="session")
def large(tmp_path_factory):
    """1,000 cells with 1,000 reports each."""
    folder = tmp_path_factory.mktemp("large")
    returns = {"bc": 100.0, "iql": 150.0, "cql": 120.0, "td3_bc": 90.0}
    run = finished_grid(folder / "large", returns, seeds=250, reports=2)
    rng = np.random.default_rng(0)
    for cell in run.cells():
        names = list(cell.metrics()[0])
        numbers = rng.normal(100, 10, size=(1_000, len(names)))
        numbers[:, names.index(metrics.STEP)] = np.arange(1_000)
        lines = [",".join(f"{value:.6g}" for value in row) for row in numbers.tolist()]
        (cell.path / "metrics.csv").write_text("\n".join([",".join(names), *lines, ""]))
    path = gems_ray.report(run.path, folder / "large.html")
    shutil.rmtree(run.path)
    return path


def test_a_thousand_cells_of_a_thousand_reports_can_be_used_within_two_seconds(show, large):
    assert large.stat().st_size < 15e6
    show(large)  # Chromium itself is warm then
    opened = show("about:blank")
    page = opened.page
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})  # the page's own work: other processes do not count

    def seconds():
        return next(
            each["value"] for each in meter.send("Performance.getMetrics")["metrics"] if each["name"] == "TaskDuration"
        )

    begin = seconds()
    page.goto(large.as_uri())
    page.get_by_label("Search").fill("seed7-")
    page.get_by_text("4 of 1,000 cells").wait_for()
    assert seconds() - begin < 2
    begin = seconds()
    page.get_by_label("Search").fill("")
    page.get_by_role("button", name="last", exact=True).last.click()
    assert seconds() - begin < 2
    assert "the first 200 are drawn" in opened.page.locator("#cells .count").inner_text()
    assert len(column(opened.page, "last")) == 200
    opened.page.get_by_role("button", name="Draw all of them").click()
    numbers = [float(text) for text in column(opened.page, "last")]
    assert len(numbers) == 1_000
    assert numbers == sorted(numbers, reverse=True)
    assert "Cells have up to 1,000 reports, of which not all are drawn" in page.locator("#curves").text_content()
    check_quiet(opened)


def test_a_served_report_follows_the_run_and_keeps_what_the_reader_chose(show, tmp_path):
    run = finished_grid(tmp_path / "run", {"bc": 100.0}, reports=3)
    cell = run.cells()[0]
    kept = (cell.path / "result.json").read_text()
    (cell.path / "result.json").unlink()
    with ReportServer([run.path]) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        opened = show(server.url)
        page = opened.page
        assert column(page, "status").count("unfinished") == 1
        page.locator("#open-1").click()
        page.get_by_label("Search").fill("bc")
        (cell.path / "result.json").write_text(kept)
        page.locator("#table-cells td.unfinished").wait_for(state="detached")
        assert page.locator("#open-1").get_attribute("aria-expanded") == "true"
        assert page.get_by_label("Search").input_value() == "bc"
        assert page.evaluate("document.activeElement.id") == "search"
        answer = page.request.get(f"{server.url}data.json", headers={"Host": "evil.example"})
        assert answer.status == 403
        assert {url.split("/")[2] for url in opened.requests if url.startswith("http")} == {server.url.split("/")[2]}
        assert opened.complaints == []
        server.shutdown()
    page.get_by_text("The server does not answer any more").wait_for(timeout=20_000)
