"""The gauges of a run on the metrics endpoint of a real Ray."""

import contextlib
import json
import re
import signal
import urllib.request
from http.client import HTTPException
from pathlib import Path

import psutil

from tests.integration.conftest import wait_for


def scrape(process):
    """All lines of gauges of ours that the Ray of a process gives out."""
    lines = []
    for target in targets(process):
        try:
            with urllib.request.urlopen(f"http://{target}/metrics", timeout=5) as answer:
                lines += answer.read().decode().splitlines()
        except (OSError, HTTPException):  # not yet, or in the middle of its start
            continue
    return [line for line in lines if line.startswith("ray_gems_ray_")]


def discovery_file(process):
    """The file in which the Ray of a process lists what a Prometheus is to look at; None while it starts."""
    text = ""
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            text += " ".join(child.cmdline())
    session = re.search(r"/\S*/session_[\d_-]+", text)
    file = Path(session[0], "prom_metrics_service_discovery.json") if session else None
    return file if file and file.exists() else None


def targets(process):
    """What Ray tells a Prometheus to look at; empty while it starts."""
    file = discovery_file(process)
    groups = json.loads(file.read_text()) if file else []
    return [target for group in groups for target in group["targets"]]


def test_a_run_gives_out_what_its_cells_measure(command, tmp_path, world_folder):
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": "td3_bc",
        "seed": [3],
        "settings": {"td3_bc": {"hidden_sizes": [32], "alpha": 0.5}},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"quality": "mixed", "episodes": 10},
        "training": {"max_timesteps": 1_000_000, "evaluation_interval": 200, "compile": "off"},
        "evaluation": {"validation_users": 4, "test_users": 4},
    }
    (tmp_path / "mine.yaml").write_text(json.dumps(experiment))
    process = command("grid", "mine.yaml", start=True)
    found = []

    def measured():
        found[:] = scrape(process)
        names = {re.match(r"ray_(\w+)", line)[1] for line in found}
        return {"gems_ray_return", "gems_ray_q_bound", "gems_ray_critic_loss", "gems_ray_updates"} <= names

    wait_for(measured, process)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    line = next(line for line in found if line.startswith("ray_gems_ray_return{"))
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line))
    assert labels["run"] == "mine"
    assert (labels["algorithm"], labels["environment"], labels["seed"]) == ("td3_bc", "diffuse_mix", "3")
    assert "alpha 0.5" in labels["settings"]
    (cell,) = (tmp_path / "runs" / "mine" / "cells").iterdir()
    assert labels["cell"] == cell.name
    assert float(line.rsplit(" ", 1)[1]) > 0
    assert Path(cell, "metrics.csv").exists()
