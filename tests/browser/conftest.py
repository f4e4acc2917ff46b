"""A real browser without a screen, and a grid that it looks at."""

import contextlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from tests.integration.conftest import command as command
from tests.integration.conftest import end_family


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no chromium on the PATH: apt-get install chromium")
    # Its sandbox does not work for root.
    with (
        sync_playwright() as driver,
        contextlib.closing(
            driver.chromium.launch(executable_path=program, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        ) as chromium,
    ):
        yield chromium


@dataclass(frozen=True)
class Watched:
    """A grid that goes on, and a page of the browser.

    Args:
        page: of the browser.
        url: of Ray's dashboard.
        token: that it asks for.
        run: folder of the run.
    """

    page: Page
    url: str
    token: str
    run: Path

    def look(self, name):
        """Opens a page of the dashboard; the first one asks for the token."""
        self.page.goto(f"{self.url}/#/{name}")
        field = self.page.get_by_placeholder("Enter your authentication token")
        field.or_(self.page.locator("table tbody tr").first).first.wait_for()
        if field.is_visible():
            field.fill(self.token)
            self.page.get_by_role("button", name="Submit").click()
            field.wait_for(state="hidden")

    def row(self, *texts):
        """The first row of a table with these texts or patterns, as the texts of its cells; waits for it."""
        found = self.page.locator("table tbody tr")
        for text in texts:
            found = found.filter(has_text=text)
        found = found.first
        found.wait_for(timeout=120_000)
        found.scroll_into_view_if_needed()
        return [cell.strip() for cell in found.locator("th, td").all_inner_texts()]


@pytest.fixture
def watch(browser, command, tmp_path, world_folder):
    """Starts a grid of some training, and opens a browser's page for its dashboard."""
    processes, pages = [], []

    def start(seeds, **training):
        experiment = {
            "environment": "diffuse_mix",
            "seed": seeds,
            "settings": {"td3_bc": {"hidden_sizes": [32], "alpha": 0.5}},
            "worlds": {"diffuse_mix": str(world_folder)},
            "dataset": {"quality": "mixed", "episodes": 10},
            "training": {"evaluation_interval": 5_000, "compile": "off", **training},
            "evaluation": {"validation_users": 2, "test_users": 2},
            "resources": {"cpu": max(1, len(os.sched_getaffinity(0)) // 2)},  # two cells at once
        }
        (tmp_path / "demo.yaml").write_text(json.dumps(experiment))
        process = command("grid", "demo.yaml", start=True)
        processes.append(process)
        shown = ""
        for line in process.stdout:
            shown += line
            if " running " in line:
                break
        url = re.search(r"Ray dashboard: (\S+)", shown)[1]
        told = command("dashboard").stdout
        run = tmp_path / "runs" / "demo"
        assert f"Ray dashboard of {run}: {url}\n" in told
        pages.append(browser.new_page(viewport={"width": 1600, "height": 900}))
        return Watched(pages[-1], url, re.search(r"^Token: (\S+)$", told, re.MULTILINE)[1], run)

    yield start
    for page in pages:
        page.close()
    for process in processes:
        end_family(process)
