"""Searches on real Ray: known points first, samplers, objectives, storages, interruptions, the best setting again."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml

from gems_ray.experiments.candidates import with_objectives
from gems_ray.experiments.check import load_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.machine import machine_report
from tests.integration.conftest import change_pack, end_family, wait_for, wait_for_rows

BASE = {
    "environment": "diffuse_mix",
    "algorithm": "td3_bc",
    "settings": {"td3_bc": {"hidden_sizes": [16, 16], "batch_size": 32}},
    "dataset": {"quality": "mixed", "episodes": 20},
    "training": {"max_timesteps": 200, "evaluation_interval": 100},
    "evaluation": {"validation_users": 8, "test_users": 20},
    "resources": {"cpu": 1},
}
SPACE = {"td3_bc": {"alpha": {"log_uniform": [0.1, 10]}, "batch_size": {"choice": [16, 32]}}}


@pytest.fixture
def search_file(tmp_path, world_folder):
    """Writes a search file and returns its name."""

    def write(name, search, **changes):
        experiment = {**BASE, "worlds": {"diffuse_mix": str(world_folder)}, **changes, "search": search}
        (tmp_path / name).write_text(yaml.safe_dump(experiment))
        return name

    return write


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def load_study(folder):
    (name,) = optuna.get_all_study_names(f"sqlite:///{folder / 'study.db'}")
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}")


def assert_consistent(folder):
    """Every trial once, in the study, in the table and in its cells, with the same values."""
    study, table = load_study(folder), pd.read_csv(folder / "trials.csv")
    assert not [trial for trial in study.trials if not trial.state.is_finished()]
    assert table["trial"].tolist() == [trial.number for trial in study.trials]
    for trial, row in zip(study.trials, table.to_dict("records"), strict=True):
        if trial.state == optuna.trial.TrialState.COMPLETE and len(trial.values) == 1:
            results = [
                json.loads((folder / "cells" / name / "result.json").read_text()) for name in row["cells"].split()
            ]
            mean = np.mean([result["report"]["eval/return_mean"] for result in results])
            assert trial.value == pytest.approx(mean)
            assert row["return"] == pytest.approx(mean, abs=1e-3)
    return study, table


def test_from_nothing_to_the_best_setting(command, search_file, tmp_path):
    name = search_file("first.yaml", {"trials": 6, "space": SPACE, "confirm": {"candidates": 2, "seeds": 2}})
    done = command("search", name)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "first"
    study, table = assert_consistent(run)
    assert len(study.trials) == 6
    assert study.trials[0].params == {"alpha": 2.5, "batch_size": 32}, "the defaults come first"
    assert table["state"].tolist() == ["complete"] * 6
    assert "td3_bc default" in done.stdout
    assert max(map(len, done.stdout.split("Best trials")[1].split("Run folder")[0].splitlines())) <= 80

    tried = pd.read_csv(run / "candidates.csv")
    assert tried.loc[0, "candidate"] == "td3_bc default"
    assert tried["seeds"].tolist() == [2] * len(tried)
    assert np.isfinite(tried[["search", "fresh_mean", "test_mean"]].to_numpy()).all()
    best = tried.loc[tried["fresh_mean"].idxmax()]
    seeds = {yaml.safe_load(path.read_text())["seed"] for path in run.glob("cells/*/cell.yaml")}
    assert seeds == {0, 1, 2}, "the candidates are trained on seeds that the trials never saw"

    again = command("grid", "runs/first/best.yaml")
    assert again.returncode == 0, again.stdout + again.stderr
    cells = pd.read_csv(tmp_path / "runs" / "best" / "cells.csv")
    assert cells["validation_last"].mean() == pytest.approx(best["fresh_mean"], abs=1e-3)
    assert cells["last_return"].mean() == pytest.approx(best["test_mean"], abs=1e-3)

    third = command("search", name)
    assert third.returncode == 0, third.stdout + third.stderr
    assert "Starting Ray" not in third.stdout, "nothing is left to run"
    assert len(load_study(run).trials) == 6


@pytest.mark.slow
def test_killed_driver_lost_study_and_a_copied_folder(command, search_file, tmp_path):
    """Random proposals depend on their number alone, so that an interrupted search must end with the same table."""
    search = {"trials": 6, "sampler": "random", "space": SPACE, "confirm": {"candidates": 0}}
    training = {"max_timesteps": 600, "evaluation_interval": 200}
    whole = command("search", search_file("whole.yaml", search, training=training))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    process = command("search", search_file("cut.yaml", search, training=training), start=True)
    run = tmp_path / "runs" / "cut"
    wait_for(lambda: len(list(run.glob("cells/*/result.json"))) >= 2, process)
    end_family(process)
    shutil.copytree(run, tmp_path / "elsewhere" / "copy")
    copy = tmp_path / "elsewhere" / "copy"
    (copy / "study.db").write_bytes((copy / "study.db").read_bytes()[:3000])  # torn
    results = sorted(copy.glob("cells/*/result.json"))
    results[0].write_text('{"status": "fini')
    (results[1].parent / "cell.yaml").write_text("environment: diff")
    (run / "study.json").unlink()  # and in the first one, whose study is whole, a record
    (run / "trials" / "0000.yaml").write_text("algor")
    for folder in (run, copy):
        shown = command("status", folder)
        assert shown.returncode == 0, shown.stderr
        assert "resume" in shown.stdout
        done = command("resume", folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        _, table = assert_consistent(folder)
        expected = pd.read_csv(tmp_path / "runs" / "whole" / "trials.csv")
        pd.testing.assert_frame_equal(table.drop(columns="cells"), expected.drop(columns="cells"))


@pytest.mark.slow
def test_search_in_packs_that_goes_on_alone_and_in_packs_again(command, search_file, tmp_path):
    """Cells of a pack differ in alpha; random proposals depend on their number alone, so the tables are the same.

    There are few updates, because rounding grows from update to update and changes a slate in the end.
    """
    space = {"td3_bc": {"alpha": {"log_uniform": [0.1, 10]}}}
    search = {"trials": 6, "sampler": "random", "space": space, "confirm": {"candidates": 0}}
    training = {"max_timesteps": 900, "evaluation_interval": 300}
    alone = command("search", search_file("alone.yaml", search, training=training))
    assert alone.returncode == 0, alone.stdout + alone.stderr
    run = tmp_path / "runs" / "packs"
    first = "search", search_file("packs.yaml", search, training=training, resources={"cpu": 1, "pack": 3})
    for line in (first, ("resume", run)):
        process = command(*line, start=True)
        wait_for_rows(run, 9, process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130, output
        assert ("as one program" in output) == (line == first)
        change_pack(run, 1 if line == first else 3)
    done = command("resume", run)
    assert done.returncode == 0, done.stdout + done.stderr
    _, table = assert_consistent(run)
    reference = tmp_path / "runs" / "alone"
    pd.testing.assert_frame_equal(table, pd.read_csv(reference / "trials.csv"), rtol=1e-3)
    learned = ["updates", "train/q_policy", "train/q_dataset", "train/cloning_error"]
    for path in run.glob("cells/*/metrics.csv"):
        expected = pd.read_csv(reference / path.relative_to(run))
        pd.testing.assert_frame_equal(pd.read_csv(path)[learned], expected[learned], rtol=1e-3)


@pytest.mark.slow
def test_study_that_is_gone_is_one_line(command, search_file, tmp_path):
    search = {"trials": 6, "sampler": "random", "space": SPACE, "confirm": {"candidates": 0}}
    training = {"max_timesteps": 600, "evaluation_interval": 200}
    process = command("search", search_file("gone.yaml", search, training=training), start=True)
    run = tmp_path / "runs" / "gone"
    wait_for(lambda: list(run.glob("cells/*/result.json")), process)
    os.truncate(run / "study.db", 0)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert output.rstrip().splitlines()[-1].startswith("error: study `gone`: its storage does not answer any more")
    assert "Traceback" not in output and "TuneError" not in output
    done = command("resume", "runs/gone")
    assert done.returncode == 0, done.stdout + done.stderr
    assert_consistent(run)


@pytest.mark.slow
def test_several_seeds_objectives_algorithms_and_early_stopping(command, search_file, tmp_path):
    several = search_file(
        "several.yaml",
        {
            "trials": 4,
            "sampler": "random",
            "seeds_per_trial": 2,
            "objectives": ["return", "slate_diversity"],
            "space": {**SPACE, "bc": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}},
            "initial": [{"algorithm": "bc", "learning_rate": 1e-3}],
            "confirm": {"candidates": 1, "seeds": 1},
        },
        algorithm=["td3_bc", "bc"],
        settings={name: {"hidden_sizes": [16, 16], "batch_size": 32} for name in ("td3_bc", "bc")},
    )
    done = command("search", several)
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "several"
    study, table = assert_consistent(run)
    assert len(study.directions) == 2
    assert [trial.params["algorithm"] for trial in study.trials[:3]] == ["td3_bc", "bc", "bc"]
    assert study.trials[2].params["bc.learning_rate"] == 1e-3
    assert all(len(cells.split()) == 2 for cells in table["cells"])
    front = {trial.number for trial in study.best_trials}
    assert set(table.loc[table["best"], "trial"]) == front

    asha = {"grace_updates": 50, "reduction_factor": 2}
    stopped = search_file(
        "asha.yaml", {"trials": 8, "sampler": "random", "space": SPACE, "asha": asha, "confirm": {"candidates": 0}}
    )
    done = command("search", stopped)
    assert done.returncode == 0, done.stdout + done.stderr
    study, table = assert_consistent(tmp_path / "runs" / "asha")
    states = [trial.state.name for trial in study.trials]
    assert set(states) == {"COMPLETE", "PRUNED"}, states
    assert [state.lower() for state in states] == table["state"].tolist()


def test_dataset_without_a_world(command, search_file, tmp_path, dataset):
    arrays = {name: getattr(dataset, name) for name in ("observations", "actions", "rewards", "next_observations")}
    np.savez(tmp_path / "foreign.npz", **arrays, terminals=dataset.terminals)
    space = {"td3_bc": {"alpha": {"choice": [0.5, 2.5]}}}
    search = {"sampler": "grid", "space": space, "confirm": {"candidates": 1, "seeds": 1}}
    name = search_file("offline.yaml", search, dataset={"file": "foreign.npz"}, worlds={})
    done = command("search", name)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an estimate (fitted Q evaluation)" in " ".join(done.stdout.split())
    table = pd.read_csv(tmp_path / "runs" / "offline" / "trials.csv")
    assert sorted(table["alpha"]) == [0.5, 2.5]
    assert np.isfinite(table["fqe"]).all()
    assert "return" not in table
    asked = search_file("asked.yaml", {**search, "objectives": ["return"]}, dataset={"file": "foreign.npz"}, worlds={})
    refused = command("search", asked)
    assert refused.returncode == 2
    assert "return needs the simulator" in refused.stderr


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory):
    """A server of its own on a free port; yields the URL of its database."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("no PostgreSQL server: install the Debian package postgresql")
    folder = tmp_path_factory.mktemp("postgresql")
    binaries, data = found[-1].parent, folder / "data"
    user = {} if os.getuid() else {"user": "postgres"}  # the server refuses to run as root
    if user:
        for path in (folder, *folder.parents[:3]):
            if path != Path("/tmp"):
                path.chmod(0o755)
        shutil.chown(folder, "postgres")
    options = {"check": True, "capture_output": True, "cwd": folder, **user}
    subprocess.run([binaries / "initdb", "-D", data, "-U", "gems", "-A", "trust", "--no-sync"], **options)
    port = free_port()
    flags = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    subprocess.run([binaries / "pg_ctl", "-D", data, "-o", flags, "-w", "-l", folder / "log", "start"], **options)
    try:
        subprocess.run([binaries / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "gems", "studies"], **options)
        yield f"postgresql://gems:secret@127.0.0.1:{port}/studies"
    finally:
        subprocess.run([binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **options)


@pytest.mark.slow
def test_two_writers_on_postgresql(command, search_file, tmp_path, postgresql):
    search = {"trials": 6, "sampler": "random", "space": SPACE, "confirm": {"candidates": 0}}
    search_file("shared.yaml", search)
    flags = ["search", "shared.yaml", "--study-storage", postgresql]
    writers = [command(*flags, "--storage", name, start=True) for name in ("one", "two")]
    outputs = [writer.communicate(timeout=200)[0] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], outputs
    url = postgresql.replace("postgresql://", "postgresql+psycopg://")
    study = optuna.load_study(study_name="shared", storage=url)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert 6 <= len(study.trials) <= 7, "both may see room for the last trial at once"
    numbers = [set(pd.read_csv(tmp_path / name / "shared" / "trials.csv")["trial"]) for name in ("one", "two")]
    assert numbers[0].isdisjoint(numbers[1])
    assert numbers[0] | numbers[1] == {trial.number for trial in study.trials}
    for path in tmp_path.glob("*/shared/**/*"):
        if path.is_file():
            assert b"secret" not in path.read_bytes(), f"{path} holds the password"
    refused = command("resume", "one/shared")
    assert refused.returncode == 2
    assert "--study-storage with the password" in refused.stderr


@pytest.mark.slow
def test_dashboard_of_optuna_opens_the_study(command, search_file, tmp_path):
    search = {"trials": 2, "space": SPACE, "confirm": {"candidates": 0}}
    assert command("search", search_file("shown.yaml", search)).returncode == 0
    port = free_port()
    line = [Path(sys.executable).parent / "optuna-dashboard", "sqlite:///runs/shown/study.db", "--port", str(port)]
    server = subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        answers = []

        def answered():
            with contextlib.suppress(OSError):
                answers.append(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5).read())
            return answers

        wait_for(answered, server, seconds=60)
    finally:
        server.kill()
        server.wait()
    (summary,) = json.loads(answers[0])["study_summaries"]
    assert summary["study_name"] == "shown"


@pytest.mark.parametrize("arguments", [["status"], ["export"], ["logs", "seed0"]], ids=lambda words: words[0])
def test_reading_needs_no_ray(search_file, tmp_path, request, arguments):
    name = search_file("seen.yaml", {"trials": 1, "space": SPACE, "confirm": {"candidates": 0}})
    experiment = with_objectives(load_experiment(tmp_path / name), has_world=True)
    run = RunFolder.create(tmp_path / "seen", experiment, machine_report())
    run.add_cells(experiment.cells())
    run.all_cells()[0].log.write_text("a line\n")
    script = (
        "import sys\n"
        "sys.argv = ['run_tune.py', *sys.argv[1:]]\n"
        "from gems_ray.cli.main import app\n"
        "app(standalone_mode=False)\n"
        "assert not {'ray', 'torch'} & set(sys.modules), sorted({'ray', 'torch'} & set(sys.modules))\n"
    )
    line = [sys.executable, "-c", script, arguments[0], "seen", *arguments[1:]]
    environment = {**os.environ, "PYTHONPATH": str(request.config.rootpath)}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_logs_follow_a_cell_to_its_end(command, search_file, tmp_path):
    training = {"max_timesteps": 600, "evaluation_interval": 100}
    search = {"trials": 1, "space": SPACE, "confirm": {"candidates": 0}}
    process = command("search", search_file("long.yaml", search, training=training), start=True)
    run = tmp_path / "runs" / "long"
    wait_for(lambda: list(run.glob("cells/*/log.txt")), process)
    followed = command("logs", "runs/long", "seed0", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert followed.stdout.rstrip().endswith("finished")
    assert "600/600" in followed.stdout
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
