"""What `import gems_ray` offers, on small worlds and short trainings in this process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import gems_ray
from gems_ray.errors import ConfigError, DatasetError, RunFolderError, WorldError
from gems_ray.evaluation.returns import Evaluator
from gems_ray.execution.in_process import InProcess
from gems_ray.execution.run import run_experiment
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.machine import machine_report
from gems_ray.policies.latents import MeanAgent, RandomLatents, SampledAgent
from gems_ray.policies.slates import SlatePolicy
from gems_ray.worldmaking.collect import collect_dataset
from tests.policies import Constant

ROOT = Path(__file__).parents[2]
MOST_SECONDS = 0.2


@pytest.fixture
def experiment(world_folder, dataset_file):
    """A grid of one cell that takes seconds."""
    return {
        "environment": "diffuse_mix",
        "algorithm": "td3_bc",
        "settings": {"td3_bc": {"hidden_sizes": [16, 16], "batch_size": 32}},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"quality": "mixed", "file": str(dataset_file)},
        "training": {"max_timesteps": 120, "evaluation_interval": 60, "device": "cpu"},
        "evaluation": {"validation_users": 4, "test_users": 6},
    }


class Notes(gems_ray.RunListener):
    """Keeps what it hears; `interrupt` is a signal that comes with the first line that holds a text."""

    def __init__(self, text=None, number=None):
        self.lines, self.states, self.trained = [], [], []
        self.text, self.number = text, number

    def on_line(self, line):
        self.lines.append(line)
        if self.text and self.text in line:
            signal.raise_signal(self.number)

    def on_training(self, run):
        self.trained.append(run.path)

    def on_cell(self, change):
        self.states.append(change.state)


def in_a_process(*arguments):
    line, variables = [sys.executable, *map(str, arguments)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class TestImport:
    def test_it_is_quick_and_brings_nothing_heavy(self):
        code = (
            "import sys, time; start = time.perf_counter(); import gems_ray; seconds = time.perf_counter() - start; "
            "heavy = {'torch', 'ray', 'pandas', 'numpy', 'pydantic'} & set(sys.modules); assert not heavy, heavy; "
            "print(seconds)"
        )
        assert min(float(in_a_process("-c", code)) for _ in range(3)) < MOST_SECONDS

    def test_every_name_is_there_and_listed(self):
        for name in gems_ray.__all__:
            assert getattr(gems_ray, name) is not None
            assert name in dir(gems_ray)
        assert gems_ray.algorithms.ALGORITHMS["td3_bc"].name == "td3_bc"
        assert gems_ray.Policy is MeanAgent.__mro__[1]
        with pytest.raises(AttributeError, match="no attribute 'trainer'"):
            gems_ray.trainer  # noqa: B018

    def test_results_are_read_without_ray_and_torch(self, tmp_path):
        run = RunFolder.create(tmp_path / "run", check_experiment({"environment": "diffuse_mix"}), machine_report())
        run.add_cells(run.experiment().cells())
        code = (
            "import sys, gems_ray; run = gems_ray.open_run(sys.argv[1]); "
            "print(len(run.cells()), len(run.metrics()), len(run.table()), run.experiment.algorithm[0]); "
            "assert not {'ray', 'torch', 'optuna'} & set(sys.modules)"
        )
        assert in_a_process("-c", code, run.path) == "1 0 1 td3_bc"


class TestDatasetsAndWorlds:
    def test_they_are_loaded_from_text_and_path(self, dataset_file, dataset, world_folder, world):
        assert gems_ray.load_dataset(str(dataset_file)).fingerprint == dataset.fingerprint
        assert gems_ray.load_world(world_folder).fingerprint == world.fingerprint
        with pytest.raises(DatasetError, match="no such dataset"):
            gems_ray.load_dataset("none.npz")
        with pytest.raises(WorldError, match="Shipped: diffuse_divpen"):
            gems_ray.load_world("nowhere")


class TestEvaluate:
    def test_without_a_seed_the_users_are_those_of_the_tables(self, world):
        policy = SampledAgent(world.agents["expert"])
        found = gems_ray.evaluate(policy, world, users=8)
        assert found == Evaluator(world, "test", 8).evaluate(policy)
        assert found == gems_ray.evaluate(policy, world, users=8), "the policy's random numbers are fixed too"
        assert found.users == 8

    def test_a_seed_brings_other_users(self, world):
        policy = MeanAgent(world.agents["expert"])
        returns = {gems_ray.evaluate(policy, world, users=8, seed=seed).return_mean for seed in (None, 0, 1, 2023)}
        assert len(returns) == 4
        again = gems_ray.evaluate(policy, world, users=8, seed=1)
        assert again == gems_ray.evaluate(policy, world, users=8, seed=1)

    @pytest.mark.parametrize(("arguments", "message"), [({"users": 1}, "users 1"), ({"seed": -1}, "seed -1")])
    def test_impossible_numbers_are_refused(self, world, arguments, message):
        with pytest.raises(ConfigError, match=message):
            gems_ray.evaluate(MeanAgent(world.agents["expert"]), world, **arguments)


class TestCollect:
    def test_any_policy_is_logged_with_the_world_s_beliefs(self, world, tmp_path):
        medium = MeanAgent(world.agents["medium"])  # plays on beliefs of its own
        logged = gems_ray.collect(medium, world, episodes=3, seed=5)
        logged.save(str(tmp_path / "mine.npz"))
        assert gems_ray.load_dataset(tmp_path / "mine.npz").metadata == logged.metadata
        assert (logged.metadata.quality, logged.metadata.episodes) == ("mean_agent", 3)
        assert logged.metadata.world_fingerprint == world.fingerprint
        assert logged.terminals.sum() == 3
        seen = torch.from_numpy(logged.slates[None, :100].astype(np.int64)), torch.from_numpy(logged.clicks[None, :100])
        # The first slate of an episode is not in the file; the belief after a hundred others hardly depends on it.
        with torch.no_grad():
            theirs, own = (encoder(*seen)[0, -1].numpy() for encoder in (world.belief, medium.encoder))
        np.testing.assert_allclose(logged.next_observations[99], theirs, atol=1e-3)
        assert np.abs(theirs - own).max() > 0.01

    def test_every_policy_meets_the_same_users(self, world):
        latents = np.zeros(32, dtype=np.float32)
        one, other = (gems_ray.collect(policy, world, 2, seed=1) for policy in (Constant(latents), Constant(latents)))
        assert one.fingerprint == other.fingerprint
        random = gems_ray.collect(RandomLatents(world.bounds), world, 2, seed=1, quality="noise")
        assert random.metadata.quality == "noise"
        np.testing.assert_array_equal(random.observations[0], one.observations[0])
        assert gems_ray.collect(Constant(latents), world, 2, seed=2).fingerprint != one.fingerprint

    def test_a_quality_stands_for_the_behaviour_policies_of_the_world(self, world):
        logged = gems_ray.collect("mixed", world, episodes=3, seed=5)
        assert logged.metadata.quality == "mixed"
        assert logged.fingerprint == collect_dataset(world, "mixed", 3, seed=5).fingerprint
        with pytest.raises(ConfigError, match="quality `best` does not exist. Known: random"):
            gems_ray.collect("best", world, 3)
        with pytest.raises(ConfigError, match="the policy `mixed` is a quality already"):
            gems_ray.collect("mixed", world, 3, quality="noise")

    def test_slates_are_no_latents(self, world):
        with pytest.raises(ConfigError, match="chooses slates, but a dataset holds latents"):
            gems_ray.collect(SlatePolicy("random", world.environment), world, 2)
        with pytest.raises(ConfigError, match="episodes 0"):
            gems_ray.collect(RandomLatents(world.bounds), world, 0)


class TestRun:
    def test_from_a_dict_to_the_table(self, experiment, tmp_path):
        notes = Notes()
        run = gems_ray.run(experiment, tmp_path / "run", in_process=True, listener=notes)
        cells, metrics, table = run.cells(), run.metrics(), run.table()
        assert cells["status"].tolist() == ["finished"]
        assert metrics["updates"].tolist() == [0, 50, 60, 100, 120]
        assert metrics["eval/return_mean"].iloc[-1] == cells.loc[0, "validation_last"]
        assert set(metrics["cell"]) == set(cells["cell"])
        assert table["algorithm"].tolist() == ["random", "oracle", "behavior", "logged", "td3_bc"]
        assert run.experiment.training.max_timesteps == 120
        assert notes.trained == [run.path]
        assert (notes.states[0], notes.states[-1]) == ("running", "finished")
        assert len([line for line in notes.lines if "/120" in line]) == 5
        assert (run.path / "table.md").is_file()

        before = {path: path.stat().st_mtime_ns for path in run.path.glob("cells/*/*")}
        again = gems_ray.run(run.experiment, str(run.path), in_process=True, listener=notes)
        assert before == {path: path.stat().st_mtime_ns for path in run.path.glob("cells/*/*")}
        assert notes.trained == [run.path], "nothing was left to train"
        pd.testing.assert_frame_equal(again.cells(), gems_ray.open_run(run.path).cells())

    def test_a_file_names_the_folder(self, experiment, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "small.yaml").write_text(json.dumps(experiment | {"training": {"max_timesteps": 1}}))
        assert str(gems_ray.run("small.yaml", in_process=True).path) == "runs/small"

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_saves_and_the_same_call_goes_on(self, experiment, tmp_path, number):
        before = signal.getsignal(number)
        threads = torch.get_num_threads()
        with pytest.raises(gems_ray.RunInterrupted) as stopped:
            gems_ray.run(experiment, tmp_path / "cut", in_process=True, listener=Notes("60/120", number))
        assert stopped.value.number == number
        assert isinstance(stopped.value, KeyboardInterrupt)
        assert (signal.getsignal(number), torch.get_num_threads()) == (before, threads)
        run = gems_ray.open_run(tmp_path / "cut")
        assert run.cells()["status"].tolist() == ["unfinished"]
        assert (run.path / "table.csv").is_file()

        notes = Notes()
        gems_ray.run(experiment, run.path, in_process=True, listener=notes)
        assert "Continuing after 60 updates." in notes.lines
        whole = gems_ray.run(experiment, tmp_path / "whole", in_process=True)
        for name in ("last_return", "best_return", "q_policy"):
            assert run.cells()[name].tolist() == whole.cells()[name].tolist()

    def test_the_tables_of_an_interrupted_run_hold_no_running_cell(self, experiment, tmp_path):
        class Cut(InProcess):
            def train_cells(self, run, cells):
                (cell,) = cells
                run.folder.write_running_cells([cell.name])
                run.folder.cell(cell.name).append_metrics({"updates": 0})
                raise gems_ray.RunInterrupted(signal.SIGINT)

        with pytest.raises(gems_ray.RunInterrupted):
            run_experiment(check_experiment(experiment), tmp_path / "run", Cut(), Notes())
        assert pd.read_csv(tmp_path / "run" / "cells.csv")["status"].tolist() == ["unfinished"]

    def test_a_cell_that_fails_does_not_end_the_run(self, experiment, tmp_path):
        settings = {
            "td3_bc": {"hidden_sizes": [16, 16], "batch_size": 32, "learning_rate": 1e30},
            "bc": {"hidden_sizes": [16, 16], "batch_size": 32},
        }
        both = experiment | {"algorithm": ["td3_bc", "bc"], "settings": settings}
        cells = gems_ray.run(both, tmp_path / "run", in_process=True).cells().set_index("algorithm")
        assert cells["status"].to_dict() == {"bc": "finished", "td3_bc": "failed"}
        assert "a loss is not finite" in cells.loc["td3_bc", "reason"]

    def test_what_cannot_be_run_is_refused_before_anything_is_written(self, experiment, tmp_path):
        folder = tmp_path / "run"
        search = {"space": {"td3_bc": {"alpha": {"uniform": [0, 1]}}}}
        for given, options, message in (
            (experiment | {"search": search}, {"in_process": True}, "its trials are run by Ray"),
            (experiment | {"sead": 1}, {}, "`sead` is not a field"),
            (experiment, {"in_process": True, "address": "auto"}, "joins no cluster"),
        ):
            with pytest.raises(ConfigError, match=message):
                gems_ray.run(given, folder, **options)
        with pytest.raises(ConfigError, match="folder: expected the folder of the run"):
            gems_ray.run(experiment)
        assert not folder.exists()


class TestPlan:
    def test_a_plan_says_what_a_run_would_take(self, experiment, tmp_path):
        plan = gems_ray.plan(experiment | {"seed": [0, 1]}, tmp_path / "run")
        assert (plan.total, plan.ended, len(plan.cells)) == (2, 0, 2)
        assert plan.datasets[0].transitions == 1200
        assert plan.seconds > 0 and plan.disk_bytes > 0 and plan.memory_bytes > 0
        slowest, fastest = plan.updates_per_second("td3_bc")
        assert 0 < slowest <= fastest
        assert not (tmp_path / "run").exists()


class TestOpenRun:
    def test_a_grid_has_no_trials(self, tmp_path):
        RunFolder.create(tmp_path / "run", check_experiment({"environment": "diffuse_mix"}), machine_report())
        run = gems_ray.open_run(str(tmp_path / "run"))
        for read in (run.trials, run.candidates):
            with pytest.raises(RunFolderError, match="which has neither trials nor candidates"):
                read()
        with pytest.raises(RunFolderError, match="not a run folder"):
            gems_ray.open_run(tmp_path)

    def test_a_search_has_trials_and_candidates(self, tmp_path):
        search = {"trials": 1, "space": {"td3_bc": {"alpha": {"uniform": [1, 3]}}}}
        experiment = check_experiment({"environment": "diffuse_mix", "search": search})
        folder = RunFolder.create(tmp_path / "run", experiment, machine_report())
        run = gems_ray.open_run(folder.path)
        assert run.trials().empty
        assert run.table().columns.tolist() == run.candidates().columns.tolist()


class TestAnalysis:
    def test_learning_curves_are_means_over_seeds(self, tmp_path):
        experiment = check_experiment({"environment": "diffuse_mix", "seed": [0, 1]})
        run = RunFolder.create(tmp_path / "mine", experiment, machine_report())
        run.add_cells(experiment.cells())
        for cell, value in zip(run.cells(), (10.0, 14.0), strict=True):
            for updates in (0, 50):
                cell.append_metrics({"updates": updates, "eval/return_mean": value + updates})
        in_a_process("analysis/learning_curves.py", run.path, "--output", tmp_path / "curves.csv")
        curves = pd.read_csv(tmp_path / "curves.csv")
        assert curves["run"].tolist() == ["mine", "mine"]
        assert curves[["updates", "mean", "count"]].to_numpy().tolist() == [[0, 12, 2], [50, 62, 2]]
        assert curves["std"].tolist() == pytest.approx([8**0.5] * 2)


def test_policy_of_a_cell(tmp_path, world, world_folder, dataset_file):
    """Of the best or the last checkpoint; it scores what the result says."""
    experiment = {
        "environment": "diffuse_mix",
        "settings": {"td3_bc": {"hidden_sizes": [8], "batch_size": 16}},
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"file": str(dataset_file)},
        "training": {"max_timesteps": 60, "evaluation_interval": 20},
        "evaluation": {"validation_users": 3, "test_users": 6},
    }
    run = gems_ray.run(experiment, tmp_path / "run", in_process=True)
    (cell,) = run.cells().to_dict("records")
    for checkpoint in ("best", "last"):
        policy = run.policy("td3_bc", checkpoint)
        returns = gems_ray.evaluate(policy, world, users=6).return_mean
        assert returns == pytest.approx(cell[f"{checkpoint}_return"], abs=1e-6)
    with pytest.raises(RunFolderError, match="no cell's name contains `cql`"):
        run.policy("cql")
    (best,) = (run.path / "checkpoints").rglob("policy.safetensors")
    best.write_bytes(b"torn")
    with pytest.raises(RunFolderError, match="cannot be read"):
        run.policy("td3_bc")
    best.with_name("last.safetensors").unlink()
    with pytest.raises(RunFolderError, match="no such checkpoint"):
        run.policy("td3_bc", "last")
