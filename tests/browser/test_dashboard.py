"""What Ray's dashboard shows of a real grid, in a real browser."""

import re
import struct

import pytest

pytestmark = pytest.mark.slow

SETTINGS = "hidden_sizes [32] alpha 0.5"
SHARED = "OfflineRL of run demo, one short cell after another"


def save_picture(page, path):
    """Saves what the page shows; a picture of one colour is none."""
    page.screenshot(path=path)
    data = path.read_bytes()
    assert struct.unpack_from(">II", data, 16) == (1600, 900)
    assert len(data) > 20_000


def test_the_dashboard_asks_for_the_token_and_shows_what_is_trained(watch, tmp_path):
    watched = watch([3], max_timesteps=10_000_000)
    for path in ("api/jobs/", "logical/actors", "nodes?view=summary"):
        assert watched.page.request.get(f"{watched.url}/{path}").status == 401, path
    refused = watched.page.request.get(f"{watched.url}/api/jobs/", headers={"Authorization": "Bearer wrong"})
    assert refused.status == 403

    watched.look("actors")
    row = watched.row("OfflineRL")
    assert f"td3_bc diffuse_mix seed 3 {SETTINGS}" in row
    assert "ALIVE" in row
    save_picture(watched.page, tmp_path / "actors.png")
    assert watched.page.request.get(f"{watched.url}/api/jobs/").status == 200, "the page has kept the token"

    watched.look("cluster")
    assert f"ray::td3_bc diffuse_mix seed 3 {SETTINGS}" in watched.row("ray::td3_bc")
    save_picture(watched.page, tmp_path / "cluster.png")


def test_a_process_of_short_cells_is_not_called_after_the_first_one(watch, tmp_path):
    watched = watch(list(range(40)), max_timesteps=5_000)
    watched.look("actors")
    row = watched.row("OfflineRL")
    assert SHARED in row
    assert not any("seed" in text for text in row)
    save_picture(watched.page, tmp_path / "actors.png")

    watched.look("cluster")
    first = watched.row("ray::td3_bc diffuse_mix seed")
    # The browser finds the texts of the columns without a space between them: N/A, the actor that has come into being
    # in the meantime, the process, Log.
    process = re.compile(rf"N/A([0-9a-f]{{56}})?{number(first)}Log")
    other = watched.row(re.compile(rf"seed (?!{seed(first)} )\d+ "), process)
    assert number(first) == number(other), "one process, which shows the cell that it trains now"
    assert seed(first) != seed(other)
    save_picture(watched.page, tmp_path / "cluster.png")
    watched.look("actors")
    assert SHARED in watched.row("OfflineRL")


def number(row):
    """Of the process in a row of the cluster's table."""
    (found,) = [text for text in row if re.fullmatch(r"\d+", text)]
    return found


def seed(row):
    """Of the cell that a process trains, by its title in a row of the cluster's table."""
    title = re.compile(rf"ray::td3_bc diffuse_mix seed (\d+) {re.escape(SETTINGS)}")
    (found,) = filter(None, map(title.fullmatch, row))
    return found[1]
