"""Runs that are shown in TensorBoard, in a real MLflow store and server, and by the real W&B client, offline."""

import json
import re
import signal
import socket
import struct
import subprocess
import sys
import urllib.request

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from tensorboardX.proto.event_pb2 import Event
from wandb.proto import wandb_internal_pb2 as wandb_records

from gems_ray.experiments.check import load_experiment
from gems_ray.tune.tracking import RUN_TAG
from tests.integration.conftest import end_family, wait_for

SECRETS = {"MLFLOW_TRACKING_PASSWORD": "not-for-the-disk-1", "WANDB_API_KEY": "not-for-the-disk-2" * 3}
STORE = "sqlite:///mlflow.db"


@pytest.fixture
def grid(tmp_path, world_folder):
    """Writes an experiment file and returns its name."""

    def write(tracking, updates=400, **more):
        experiment = {
            "environment": "diffuse_mix",
            "seed": [0, 1],
            "settings": {"td3_bc": {"hidden_sizes": [32, 32], "batch_size": 64}},
            "worlds": {"diffuse_mix": str(world_folder)},
            "dataset": {"quality": "mixed", "episodes": 20},
            "training": {"max_timesteps": updates, "evaluation_interval": 200},
            "evaluation": {"validation_users": 5, "test_users": 10},
            "tracking": tracking,
        }
        (tmp_path / "mine.yaml").write_text(json.dumps({**experiment, **more}))
        return "mine.yaml"

    return write


def mlflow_runs(uri):
    """The runs of MLflow by name, with the history of the return as (step, value)."""
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    histories = [client.get_metric_history(run.info.run_id, "eval/return_mean") for run in runs]
    return {
        run.info.run_name: (run, [(entry.step, entry.value) for entry in history])
        for run, history in zip(runs, histories, strict=True)
    }


def evaluations(run, cell):
    """What the run folder says of a cell, as (updates, return)."""
    rows = pd.read_csv(run / "cells" / cell / "metrics.csv")
    return list(zip(rows["updates"].tolist(), rows["eval/return_mean"].tolist(), strict=True))


def wandb_offline(folder):
    """The records of an offline run: blocks of 32 KiB in LevelDB's log format, after seven bytes."""
    (file,) = folder.glob("run-*.wandb")
    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):
        if 32_768 - position % 32_768 < 7:
            position += 32_768 - position % 32_768
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_records.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def wandb_runs(run):
    """By the name of the cell: parameters, (step, return) of every logged row, last state, exit code."""
    found = {}
    for folder in sorted((run / "wandb").glob("offline-run-*")):
        records = list(wandb_offline(folder))
        (head,) = [record.run for record in records if record.HasField("run")][:1]
        config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in head.config.update}
        rows = []
        for record in records:
            if record.HasField("history"):
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                rows.append((items["_step"], items.get("eval/return_mean")))
        changes = [change for record in records for change in record.summary.update]
        summary = {change.key or change.nested_key[0]: json.loads(change.value_json) for change in changes}
        codes = [record.exit.exit_code for record in records if record.HasField("exit")]
        found[head.display_name] = (head, config, rows, summary, codes)
    return found


def scalars(folder):
    """The scalars of a file for TensorBoard, as {name: {step: value}}: records with their length before them."""
    (file,) = folder.glob("events.out.tfevents.*")
    data, position, found = file.read_bytes(), 0, {}
    while position + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event.FromString(data[position + 12 : position + 12 + length])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        position += length + 16
    return found


@pytest.mark.slow
def test_every_cell_is_a_run_of_the_trackers(command, grid, tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    done = command("grid", grid({"mlflow": STORE, "wandb": "project"}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracking." not in done.stdout + done.stderr
    assert not done.stderr, "the packages tell of nothing"
    run = tmp_path / "runs" / "mine"
    cells = {cell.name: cell for cell in load_experiment(run / "experiment.yaml").cells()}
    untracked = json.loads((tmp_path / "mine.yaml").read_text())
    del untracked["tracking"]
    (tmp_path / "untracked.yaml").write_text(json.dumps(untracked))
    assert set(cells) == {cell.name for cell in load_experiment(tmp_path / "untracked.yaml").cells()}

    results = {name: json.loads((run / "cells" / name / "result.json").read_text()) for name in cells}
    expected = {"environment": "diffuse_mix", "algorithm": "td3_bc", "settings.hidden_sizes": "[32, 32]"}
    found = mlflow_runs(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert set(found) == set(cells)
    for name, (one, history) in found.items():
        assert one.info.status == "FINISHED"
        assert one.data.tags["status"] == "finished"
        assert {**one.data.params, **expected, "seed": str(cells[name].seed)} == one.data.params
        assert one.data.params["settings.alpha"] == "2.5", "a default"
        assert history == evaluations(run, name), "each evaluation once"
        assert len(history) >= 3
        assert one.data.metrics["test/last/return_mean"] == results[name]["test"]["last"]["return_mean"]

    offline = wandb_runs(run)
    assert set(offline) == set(cells)
    for name, (head, config, rows, summary, codes) in offline.items():
        assert (head.project, head.run_group, codes) == ("project", "mine", [0])
        assert (config["algorithm"], config["seed"]) == ("td3_bc", cells[name].seed)
        assert config["settings.batch_size"] == 64
        assert rows == evaluations(run, name)
        assert summary["status"] == "finished"
        assert summary["test/best/return_mean"] == results[name]["test"]["best"]["return_mean"]

    for name in cells:
        (trial,) = (run / "checkpoints").glob(f"*/{name}-*")
        shown = {round(value, 3) for value in scalars(trial)["ray/tune/eval/return_mean"].values()}  # of 32 bits
        assert shown == {round(value, 3) for _, value in evaluations(run, name)}

    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert not [name for name, value in SECRETS.items() if value.encode() in path.read_bytes()], path


@pytest.mark.slow
def test_a_cell_goes_on_in_the_same_run(command, grid, tmp_path):
    grid({"mlflow": STORE, "wandb": "project"}, updates=4_000)
    run, store = tmp_path / "runs" / "mine", f"sqlite:///{tmp_path / 'mlflow.db'}"
    process = command("grid", "mine.yaml", start=True)
    rows = lambda: [len(path.read_text().splitlines()) for path in run.glob("cells/*/metrics.csv")]  # noqa: E731
    wait_for(lambda: len(rows()) == 2 and min(rows()) > 5, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130, output
    cut = mlflow_runs(store)
    assert {one.info.status for one, _ in cut.values()} == {"KILLED"}
    assert {one.data.tags["status"] for one, _ in cut.values()} == {"unfinished"}
    done = command("resume", "runs/mine")
    assert done.returncode == 0, done.stdout + done.stderr
    whole = mlflow_runs(store)
    assert {name: one.info.run_id for name, (one, _) in whole.items()} == {
        name: one.info.run_id for name, (one, _) in cut.items()
    }
    for name, (one, history) in whole.items():
        assert (one.info.status, one.data.tags["status"]) == ("FINISHED", "finished")
        assert history == evaluations(run, name), "each evaluation once, those before the stop too"
    for name, (*_, rows, summary, _) in wandb_runs(run).items():  # the later folder of a cell counts
        assert rows == evaluations(run, name), "the whole curve"
        assert summary["status"] == "finished"


@pytest.fixture
def server(tmp_path):
    """A real server of MLflow: its URI and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    line += ["--host", "127.0.0.1", "--port", uri.rpartition(":")[2], "--workers", "1"]
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True)

    def answers():
        try:
            return urllib.request.urlopen(f"{uri}/health", timeout=2).status == 200
        except OSError:
            return False

    try:
        wait_for(answers, process)
        yield uri, process
    finally:
        end_family(process)


@pytest.mark.slow
def test_a_server_that_is_gone_stops_nothing(command, grid, tmp_path, server, monkeypatch):
    uri, process = server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    training = command("grid", grid({"mlflow": uri}, updates=4_000), start=True)
    cells = tmp_path / "runs" / "mine" / "cells"
    wait_for(lambda: len(list(cells.glob("*/metrics.csv"))) == 2 and len(mlflow_runs(uri)) == 2, training)
    marks = {one.data.tags[RUN_TAG] for one, _ in mlflow_runs(uri).values()}
    assert marks == {json.loads((tmp_path / "runs" / "mine" / "tracking.json").read_text())["run"]}
    end_family(process)
    output, _ = training.communicate(timeout=240)
    assert training.returncode == 0, output
    (line,) = [line for line in output.splitlines() if "tracking." in line]
    assert re.match(r"tracking\.mlflow: cannot be written any more \(.+\); the training goes on", line)
    assert "Traceback" not in output
    assert set(pd.read_csv(tmp_path / "runs" / "mine" / "cells.csv")["status"]) == {"finished"}


def test_a_server_that_does_not_answer_is_one_line_before_anything_is_trained(command, grid, tmp_path):
    done = command("grid", grid({"mlflow": "http://127.0.0.1:1"}), timeout=60)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: tracking.mlflow: http://127.0.0.1:1 cannot be opened (")
    assert "Starting Ray" not in done.stdout
