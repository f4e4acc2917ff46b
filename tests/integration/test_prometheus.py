"""deploy/: a real Prometheus reads a running grid, and answers what the dashboard of Grafana asks it."""

import json
import re
import shutil
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from gems_ray.tune.gauges import GAUGES
from tests.integration.conftest import end_family, wait_for
from tests.integration.test_metrics import discovery_file

DEPLOY = Path(__file__).parents[2] / "deploy"
LATEST = "/tmp/ray/session_latest/prom_metrics_service_discovery.json"
VARIABLES = ("run", "algorithm", "environment")


def grafana():
    return json.loads((DEPLOY / "grafana_dashboard.json").read_text())


def expressions():
    """Every PromQL expression of the dashboard."""
    return [target["expr"] for panel in grafana()["panels"] for target in panel["targets"]]


def test_the_dashboard_has_what_grafana_demands():
    """Of its schema, the fields that a dashboard, a panel, a target and a variable cannot do without."""
    dashboard = grafana()
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time", "timezone", "editable"} <= set(dashboard)
    assert 8 <= len(dashboard["uid"]) <= 40
    assert dashboard["id"] is None, "Grafana gives it one of its own"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    source = {"type": variables["datasource"]["query"], "uid": "${datasource}"}
    for name in VARIABLES:
        assert (variables[name]["type"], variables[name]["datasource"]) == ("query", source)
        assert (variables[name]["multi"], variables[name]["includeAll"]) == (True, True)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        assert panel["type"] == "timeseries"
        assert panel["title"]
        assert panel["datasource"] == source
        assert {"defaults", "overrides"} == set(panel["fieldConfig"])
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + 9)
        }
        assert place["h"] == 9
        assert not covered & places, "one panel over another"
        places |= covered
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert "{{cell}}" in target["legendFormat"]
            assert set(re.findall(r"\$(\w+)", target["expr"])) == set(VARIABLES)


def test_every_gauge_is_shown():
    assert {f"ray_{name}" for name, _ in GAUGES.values()} == set(
        re.findall(r"ray_gems_ray_\w+", " ".join(expressions()))
    )


def ask(port, path, **query):
    """An answer of Prometheus's HTTP interface."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


@pytest.fixture
def prometheus(tmp_path):
    """Starts Prometheus with the file of `deploy/`, on the session of one Ray; returns the port of its interface."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("there is no prometheus on the PATH: apt-get install prometheus")
    started = []

    def start(discovery):
        text = (DEPLOY / "prometheus.yml").read_text()
        assert text.count(LATEST) == 1
        config = yaml.safe_load(text.replace(LATEST, str(discovery)))
        config["global"]["scrape_interval"] = "2s"  # not ten, for the sake of the test
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        line = [program, f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        with (tmp_path / "prometheus.log").open("w") as log:
            started.append(subprocess.Popen([*line, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log))
        return port

    yield start
    for process in started:
        end_family(process)


@pytest.mark.slow
def test_prometheus_answers_what_the_dashboard_asks(command, tmp_path, world_folder, prometheus):
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": ["td3_bc", "iql"],
        "settings": {name: {"hidden_sizes": [32], "batch_size": 32} for name in ("td3_bc", "iql")},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"quality": "mixed", "episodes": 10},
        "training": {"max_timesteps": 1_000_000, "evaluation_interval": 200, "compile": "off"},
        "evaluation": {"validation_users": 4, "test_users": 4},
        "resources": {"cpu": 0.5},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(experiment))
    process = command("grid", "mine.yaml", start=True)
    try:
        wait_for(lambda: discovery_file(process), process)
        port = prometheus(discovery_file(process))
        chosen = {"run": "mine", "algorithm": "(td3_bc|iql)", "environment": "diffuse_mix"}  # as Grafana writes them

        def answers():
            try:
                return {text: ask(port, "query", query=fill(text, chosen))["result"] for text in expressions()}
            except urllib.error.URLError:  # it starts
                return {"": []}

        wait_for(lambda: all(len(found) == 2 for found in answers().values()), process)
        for text, found in answers().items():
            assert {series["metric"]["algorithm"] for series in found} == {"td3_bc", "iql"}, text
            for series in found:
                labels = series["metric"]
                assert (labels["run"], labels["environment"], labels["seed"]) == ("mine", "diffuse_mix", "0")
                assert (tmp_path / "runs" / "mine" / "cells" / labels["cell"]).is_dir()
                assert "hidden_sizes [32]" in labels["settings"]
        updates = next(text for text in expressions() if "ray_gems_ray_updates{" in text)
        assert all(float(series["value"][1]) > 0 for series in answers()[updates])
        assert len(ask(port, "query", query=fill(updates, dict.fromkeys(VARIABLES, ".*")))["result"]) == 2
        assert not ask(port, "query", query=fill(updates, {**chosen, "run": "another"}))["result"]

        for variable in grafana()["templating"]["list"]:
            if variable["type"] == "query":
                series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"]).groups()
                values = ask(port, f"label/{label}/values", **{"match[]": fill(series, chosen)})
                assert set(values) == {"run": {"mine"}, "algorithm": {"td3_bc", "iql"}}.get(label, {"diffuse_mix"})
        (target,) = {active["labels"]["job"] for active in ask(port, "targets")["activeTargets"]}
        assert target == "ray"
    finally:
        end_family(process)


def fill(text, chosen):
    """An expression with the variables that a user has chosen."""
    for name, value in chosen.items():
        text = text.replace(f"${name}", value)
    return text
