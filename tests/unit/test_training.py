"""The training loop: evaluation points, bounds by hand, exact continuation, torn checkpoints."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gems_ray import metrics
from gems_ray.checkpoints import read_checkpoint
from gems_ray.errors import DeviceError, RunFolderError, TrainingError, WorldError
from gems_ray.evaluation.belonging import check_world
from gems_ray.evaluation.offline import hold_out
from gems_ray.evaluation.returns import Evaluator
from gems_ray.execution import in_process
from gems_ray.execution.cell_training import CellTraining
from gems_ray.execution.in_process import LocalCell
from gems_ray.execution.run import OpenRun
from gems_ray.execution.sources import Source
from gems_ray.experiments.cell_folder import DIVERGED, FINISHED, UNFINISHED, CellFolder
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellCheckpoint
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Divergence
from gems_ray.learning import memory
from gems_ray.learning.diagnostics import DivergenceWatch, value_bound
from gems_ray.learning.engine import missing_for_compilation
from gems_ray.learning.trainer import evaluation_points, resolve_device
from gems_ray.machine import machine_report
from gems_ray.simulator.items import topic_norms
from tests.conftest import make_world
from tests.policies import Constant
from tests.unit.conftest import MACHINE

CLOCK = (metrics.SECONDS, metrics.UPDATES_PER_SECOND)
SETTINGS = {"td3_bc": {"hidden_sizes": [16, 16], "batch_size": 32}}


@pytest.fixture
def run_cell(tmp_path, dataset, world, world_folder):
    """Opens the cell of a tiny experiment in a folder of the given name, as another process than the one before."""

    def open_cell(name, evaluate=True, settings=SETTINGS, algorithm="td3_bc", holdout=0.0, **training):
        experiment = check_experiment(
            {
                "environment": ["diffuse_mix"],
                "algorithm": algorithm,
                "settings": settings,
                "worlds": {"diffuse_mix": str(world_folder)},
                "training": {"max_timesteps": 120, "evaluation_interval": 60} | training,
                "evaluation": {"validation_users": 4, "test_users": 5, "holdout": holdout},
            }
        )
        run = RunFolder.create(tmp_path / name, experiment, MACHINE)
        run.add_cells(experiment.cells())
        (cell,) = experiment.cells()
        return LocalCell(run, cell, Source(tmp_path / "mine.npz", dataset, world if evaluate else None))

    return open_cell


def finish(cell):
    while not cell.training.ended:
        cell.advance()
    return cell


def checkpoint(cell, name="last.safetensors"):
    """A file of the checkpoint at which a cell continues."""
    return cell.folder.path.parents[1] / "checkpoints" / cell.folder.checkpoint().path / name


def rows(folder: CellFolder):
    with (folder.path / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        for key in CLOCK:
            del line[key]
    return lines


def timeless(result):
    """A result without what the clock had to say."""
    report = {key: value for key, value in result.report.items() if key not in CLOCK}
    return result.model_copy(update={"seconds": 0, "report": report})


def test_evaluation_points():
    assert evaluation_points(100, 5000) == [0, 50, 100]
    assert evaluation_points(3000, 1000) == [0, 50, 100, 250, 500, 1000, 2000, 3000]
    assert evaluation_points(1_000_000, 5000)[-2:] == [995_000, 1_000_000]
    assert evaluation_points(7, 3) == [0, 3, 6, 7]


def test_machine_report_names_versions_commit_and_hardware():
    report = machine_report()
    assert report.torch.startswith("2.")
    assert report.memory_gb > 0.5
    if (Path(__file__).parents[2] / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}\+?", report.commit)


def test_value_bound_by_hand():
    rewards = np.array([1, 2, 3, 10, 0, 4], dtype=np.float32)
    terminals = np.array([0, 0, 1, 0, 1, 0], dtype=bool)
    # episodes (1, 2, 3), (10, 0) and the open (4): 1 + 0.5 * (2 + 0.5 * 3) = 2.75, 3.5, 3; 10, 0; 4
    assert value_bound(rewards, terminals, 0.5, bootstrap=False) == 10
    assert value_bound(rewards[:3], terminals[:3], 0.5, bootstrap=False) == pytest.approx(3.5)
    assert value_bound(rewards[:3], terminals[:3], 1.0, bootstrap=False) == 6
    # beyond the time limit nothing pays more than the highest reward for ever: 10 / (1 - 0.5)
    assert value_bound(rewards, terminals, 0.5, bootstrap=True) == 20
    assert value_bound(rewards, terminals, 1.0, bootstrap=True) == np.inf


def test_no_cuda_here_is_a_clear_error():
    if torch.cuda.is_available():
        assert resolve_device("auto") == resolve_device("cuda") == "cuda"
    else:
        assert resolve_device("auto") == "cpu"
        with pytest.raises(DeviceError, match="no CUDA device"):
            resolve_device("cuda")


class TestEvaluation:
    def test_same_users_for_everyone_and_other_users_for_the_test(self, world):
        first = Evaluator(world, "validation", 6).references()
        assert first == Evaluator(world, "validation", 6).references()
        assert first["random"] != Evaluator(world, "test", 6).references()["random"]

    def test_numbers_by_hand(self, world):
        evaluator = Evaluator(world, "test", 50)
        constant = evaluator.evaluate(Constant(torch.zeros(32)))
        slate = world.ranker.decode(torch.zeros((1, 32)))[0]
        assert constant.distinct_items_per_slate == len(set(slate.tolist()))
        assert constant.catalogue_coverage == len(set(slate.tolist())) / 1000
        assert constant.distinct_slates == 1
        assert constant.repeated_slates == pytest.approx(0.99)  # all of the 100 but the first
        topics = topic_norms(world.environment, world.items).argmax(axis=1)[slate]
        shares = np.unique(topics, return_counts=True)[1] / 10
        assert constant.topic_entropy == pytest.approx(-(shares * np.log2(shares)).sum())
        assert constant.return_per_step == pytest.approx(constant.return_mean / 100)
        assert constant.users == 50
        assert 0 < constant.return_se < constant.return_mean
        references = evaluator.references()
        assert references["random"].distinct_items_per_slate == 10
        assert references["random"].distinct_slates == 5000
        assert references["random"].repeated_slates == pytest.approx(0)
        assert references["oracle"].return_mean > references["random"].return_mean


class TestContinuation:
    @pytest.mark.parametrize("stop_after", [0, 1, 37, 50, 63, 119])
    def test_interrupted_equals_uninterrupted(self, run_cell, stop_after):
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        while part.training.trainer.algorithm.updates < stop_after:
            part.advance(stop=lambda: part.training.trainer.algorithm.updates >= stop_after)
        part.save()
        again = finish(run_cell("part"))
        ours, theirs = (
            read_checkpoint(checkpoint(whole))[0],
            read_checkpoint(checkpoint(again))[0],
        )
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
        assert rows(whole.folder) == rows(again.folder)
        assert timeless(whole.folder.result()) == timeless(again.folder.result())

    def test_gradient_norm_of_an_actor_that_does_not_move_before_the_report(self, run_cell):
        """Actor and targets move at update 48; the report is at 50, the interruption between the two."""
        settings = {"td3_bc": SETTINGS["td3_bc"] | {"policy_freq": 3}}
        whole = finish(run_cell("whole", settings=settings))
        part = run_cell("part", settings=settings)
        while part.training.trainer.algorithm.updates < 49:
            part.advance(stop=lambda: part.training.trainer.algorithm.updates >= 49)
        part.save()
        again = finish(run_cell("part", settings=settings))
        assert rows(whole.folder) == rows(again.folder)
        assert float(rows(whole.folder)[1][metrics.gradient_norm("actor")]) > 0

    @pytest.mark.parametrize("stop_after", [37, pytest.param(63, marks=pytest.mark.slow)])
    def test_in_the_middle_of_a_compiled_block(self, run_cell, stop_after):
        if missing := missing_for_compilation(False):
            pytest.skip(f"no {missing}")
        whole = finish(run_cell("whole", compile="on"))
        part = run_cell("part", compile="on")
        while part.training.trainer.algorithm.updates < stop_after:
            part.advance(stop=lambda: part.training.trainer.algorithm.updates >= stop_after)
        part.save()
        again = finish(run_cell("part", compile="on"))
        ours, theirs = (
            read_checkpoint(checkpoint(whole))[0],
            read_checkpoint(checkpoint(again))[0],
        )
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key
        assert rows(whole.folder) == rows(again.folder)

    def test_killed_between_metrics_and_checkpoint(self, run_cell):
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        for _ in range(2):
            part.advance()
        record, folder = part.folder.path / "checkpoint.json", checkpoint(part).parent
        before = record.read_bytes(), {path.name: path.read_bytes() for path in folder.iterdir()}
        part.advance()
        folder.mkdir()  # as if the process had died before writing the next one
        record.write_bytes(before[0])
        for name, content in before[1].items():
            (folder / name).write_bytes(content)
        with (part.folder.path / "metrics.csv").open("a") as file:
            file.write("120,3.1")  # and in the middle of a line
        assert rows(finish(run_cell("part")).folder) == rows(whole.folder)

    @pytest.mark.parametrize("content", [b"", b"torn", None])
    def test_torn_checkpoint_begins_anew(self, run_cell, content):
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        part.advance()
        part.advance()
        path = checkpoint(part)
        path.write_bytes(path.read_bytes()[:-1000] if content is None else content)
        again = run_cell("part")
        assert again.training.trainer.algorithm.updates == 0
        assert rows(finish(again).folder) == rows(whole.folder)

    def test_a_cell_of_an_older_version_goes_on(self, run_cell):
        """Its checkpoint lies beside its records, which stay."""
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        for _ in range(3):
            part.advance()
        for name, former in (("last.safetensors", "last.safetensors"), ("policy.safetensors", "best.safetensors")):
            checkpoint(part, name).replace(part.folder.path / former)
        (part.folder.path / "checkpoint.json").unlink()
        again = run_cell("part")
        assert again.training.trainer.updates == 60
        assert rows(finish(again).folder) == rows(whole.folder)
        assert timeless(again.folder.result()) == timeless(whole.folder.result())
        assert (part.folder.path / "cell.yaml").exists()

    @pytest.mark.parametrize("path", ["../../precious", "x/../../../precious", "/precious"])
    def test_nothing_outside_of_the_storage_is_removed(self, run_cell, tmp_path, path):
        """A record that somebody else wrote may name any folder."""
        part = run_cell("part")
        part.advance()
        precious = tmp_path / "precious"
        shutil.copytree(checkpoint(part).parent, precious)
        path = str(precious) if path.startswith("/") else path
        part.folder.write_checkpoint(CellCheckpoint(path=path, updates=0))
        finish(run_cell("part"))
        assert sorted(file.name for file in precious.iterdir()) == [
            "last.safetensors", "policy.safetensors", "policy.yaml",
        ]  # fmt: skip

    def test_held_out_episodes_choose_nothing(self, run_cell, dataset):
        """The best episodes are the best of those that are trained on."""
        settings = {"bc_best": {"best_fraction": 0.3, "hidden_sizes": [8]}}
        cell = run_cell("held", settings=settings, algorithm="bc_best", holdout=0.5)
        rows, held_out = hold_out(dataset.terminals, 0.5)
        chosen = set(cell.training.trainer.sampler.draw(4096).tolist())
        assert chosen <= set(rows.tolist())
        returns = dataset.rewards.reshape(12, 100).sum(axis=1)
        trained = sorted({row // 100 for row in rows}, key=lambda episode: returns[episode])
        assert {row // 100 for row in chosen} <= set(trained[-3:])
        assert set(held_out.tolist()).isdisjoint(chosen)
        result = finish(cell).folder.result()
        assert result.offline.episodes == 6
        assert np.isfinite(result.offline.fqe_value)

    def test_killed_before_the_result(self, run_cell):
        """The last checkpoint is written, the test users are still at it."""
        whole = finish(run_cell("whole"))
        part = finish(run_cell("part"))
        (part.folder.path / "result.json").unlink()
        again = finish(run_cell("part"))
        assert timeless(again.folder.result()) == timeless(whole.folder.result())

    @pytest.mark.parametrize("damage", ["facts", "metadata", "tensors", "sizes"])
    def test_checkpoint_that_fills_half_of_the_trainer_begins_anew(self, run_cell, damage):
        """What was loaded before the mistake showed is not in the fresh start."""
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        for _ in range(3):
            part.advance()
        tensors, facts = read_checkpoint(checkpoint(part))
        if damage == "facts":
            del facts["diverged"]
        elif damage == "tensors":
            del tensors[next(key for key in tensors if key.startswith("buffer."))]
        elif damage == "sizes":
            key = next(key for key in reversed(tensors) if key.endswith("weight"))
            tensors[key] = torch.zeros(3, 3)
        metadata = None if damage == "metadata" else {"facts": json.dumps(facts)}
        save_file(tensors, checkpoint(part), metadata)
        torn = checkpoint(part)
        again = run_cell("part")
        assert again.training.trainer.algorithm.updates == 0
        assert "begins anew" in again.folder.log.read_text()
        assert rows(finish(again).folder) == rows(whole.folder)
        assert timeless(again.folder.result()) == timeless(whole.folder.result())
        assert torn.exists(), "what could not be read is kept"

    def test_best_checkpoint_that_is_lost_begins_anew(self, run_cell):
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        while part.training.trainer.best_updates in (-1, part.training.trainer.reported):
            part.advance()  # until the best policy is not the last one
        checkpoint(part, "policy.safetensors").write_bytes(b"torn")
        again = run_cell("part")
        assert again.training.trainer.algorithm.updates == 0
        assert "begins anew" in again.folder.log.read_text()
        assert timeless(finish(again).folder.result()) == timeless(whole.folder.result())

    @pytest.mark.parametrize("kept", [0, 40, -1, -50])
    def test_torn_metrics_are_whole_again(self, run_cell, kept):
        """The row of the last report is in the checkpoint too; older rows are not, and are named by their absence."""
        whole = finish(run_cell("whole"))
        part = run_cell("part")
        for _ in range(3):
            part.advance()
        path = part.folder.path / "metrics.csv"
        path.write_bytes(path.read_bytes()[:kept])
        again = finish(run_cell("part"))
        expected = rows(whole.folder)
        assert rows(again.folder) == (expected if kept < 0 else expected[2:])

    def test_log_tells_what_happened(self, run_cell):
        cell = run_cell("whole")
        cell.advance()
        log = finish(run_cell("whole")).folder.log.read_text()
        assert "begins after 0 updates" in log
        assert "goes on after 0 updates" in log
        assert log.count("/120  return") == 5
        assert log.rstrip().endswith("finished")

    def test_checkpoints_hold_no_partial_files(self, run_cell):
        cell = finish(run_cell("whole"))
        names = sorted(path.name for path in cell.folder.path.iterdir())
        assert names == ["cell.yaml", "checkpoint.json", "log.txt", "metrics.csv", "result.json"]
        files = [path for path in (cell.folder.path.parents[1] / "checkpoints").rglob("*") if path.is_file()]
        assert sorted(path.name for path in files) == ["last.safetensors", "policy.safetensors", "policy.yaml"]


class TestResult:
    def test_best_checkpoint_is_the_best_on_validation(self, run_cell, world):
        cell = finish(run_cell("whole"))
        result, lines = cell.folder.result(), rows(cell.folder)
        returns = [float(line[metrics.RETURN_MEAN]) for line in lines]
        assert result.status == FINISHED
        assert result.updates == 120
        assert result.validation.best == max(returns)
        assert result.best_updates == int(lines[int(np.argmax(returns))][metrics.STEP])
        assert (result.test.last.users, result.test.best.users) == (5, 5)
        assert result.fingerprints.world == world.fingerprint

    def test_reports_hold_losses_and_values(self, run_cell):
        lines = rows(finish(run_cell("whole")).folder)
        assert [line[metrics.STEP] for line in lines] == ["0", "50", "60", "100", "120"]
        assert lines[0]["train/critic_loss"] == ""  # nothing was trained yet, and 0 would be a lie
        for line in lines[1:]:
            assert all(np.isfinite(float(value)) for value in line.values())
        assert float(lines[0][metrics.Q_BOUND]) > 0

    def test_diverged_cells_are_trained_and_tested_to_the_end(self, run_cell):
        """Critics that start far above what the rewards pay, and hardly learn, stay there."""
        settings = {"td3_bc": SETTINGS["td3_bc"] | {"learning_rate": 1e-9}}
        cell = run_cell("diverged", settings=settings, divergence={"factor": 2.0, "reports": 3})
        bound = float(cell.training.trainer._diagnostics._bound)
        with torch.no_grad():
            for name in ("critic_1", "critic_2"):
                cell.training.trainer.algorithm.networks[name].net[-1].bias.fill_(2.5 * bound)
        seen = []
        while not cell.training.ended:
            cell.advance()
            seen.append(cell.training.trainer.diverged)
        assert seen == [False, False, True, True, True]
        result = cell.folder.result()
        assert result.status == DIVERGED
        assert result.updates == 120
        assert result.test.last.users == 5
        assert read_checkpoint(checkpoint(cell))[1]["diverged"]

    def test_values_that_come_back_have_not_diverged(self):
        watch = DivergenceWatch(Divergence(factor=2.0, reports=2), unit=4.0)
        for q in (1.0, 25.0, 19.0, 25.0, -100.0):
            watch.update({metrics.Q_POLICY: q, metrics.Q_DATASET: 0.0, metrics.Q_BOUND: 10.0})
            assert not watch.diverged
        for q in (21.0, 22.0, 0.0):
            watch.update({metrics.Q_POLICY: 0.0, metrics.Q_DATASET: q, metrics.Q_BOUND: 10.0})
        assert watch.diverged, "what has diverged once stays so"

    @pytest.mark.parametrize(("bound", "limit"), [(10.0, 30.0), (0.0, 4.0), (-50.0, 50.0), (-1.0, 3.0)])
    def test_bounds_below_zero_leave_room_too(self, bound, limit):
        """Rewards may be costs: then the bound is negative, and a multiple of it would lie below honest values."""
        for q, expected in ((limit - 0.1, False), (limit + 0.1, True)):
            watch = DivergenceWatch(Divergence(factor=3.0, reports=1), unit=2.0)
            watch.update({metrics.Q_POLICY: q, metrics.Q_DATASET: q, metrics.Q_BOUND: bound})
            assert watch.diverged == expected

    def test_exhausted_gpu_memory_is_one_clear_line_and_leaves_the_checkpoint(self, run_cell, monkeypatch):
        """The error is raised by hand: there is no GPU here whose memory could be filled."""
        cell = run_cell("full")
        cell.advance()
        before = checkpoint(cell).read_bytes()

        def exhaust(batch, noise, phase):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(cell.training.trainer.algorithm, "learn", exhaust)
        monkeypatch.setattr(memory, "largest_batch", lambda algorithm, buffer: 16)
        with pytest.raises(TrainingError, match=r"batch_size 32.*Set settings.td3_bc.batch_size to 16, or"):
            cell.advance()
        assert checkpoint(cell).read_bytes() == before
        assert run_cell("full").training.trainer.algorithm.updates == 0

    def test_without_a_world_offline_metrics_only(self, run_cell):
        cell = finish(run_cell("offline", evaluate=False))
        assert metrics.RETURN_MEAN not in rows(cell.folder)[0]
        assert metrics.CLONING_ERROR in rows(cell.folder)[0]
        assert cell.folder.result().test is None

    def test_loss_that_is_not_finite_is_an_error(self, run_cell):
        cell = run_cell("broken")
        cell.advance()
        with torch.no_grad():
            cell.training.trainer.algorithm.networks["critic_1"].net[0].weight.fill_(torch.nan)
        with pytest.raises(TrainingError, match="not finite"):
            cell.advance()

    def test_best_policy_file_is_enough_to_act(self, run_cell):
        cell = finish(run_cell("whole"))
        tensors = load_file(checkpoint(cell, "policy.safetensors"))
        assert {"normalizer.state_mean", "normalizer.action_scale", "actor.net.0.weight"} <= set(tensors)


@pytest.mark.parametrize(("free", "fits"), [(10_000, 64), (100_000, 512), (1_109, 0), (1_110, 1)])
def test_batch_that_fits_by_hand(free, fits):
    """An update of B rows takes 1,000 + 110 B bytes."""
    assert memory.batch_that_fits(lambda batch_size: 1_000 + 110 * batch_size, free) == fits


class TestRunFolder:
    def test_other_experiment_in_the_same_folder(self, run_cell):
        run_cell("one")
        with pytest.raises(RunFolderError, match="another experiment"):
            run_cell("one", max_timesteps=200)

    def test_foreign_folder(self, run_cell, tmp_path):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "diary.txt").write_text("mine")
        with pytest.raises(RunFolderError, match="not a run's"):
            run_cell("notes")
        assert (tmp_path / "notes" / "diary.txt").read_text() == "mine"

    def test_moved_folder_loads(self, run_cell, tmp_path):
        finish(run_cell("here"))
        (tmp_path / "here").rename(tmp_path / "there")
        (cell,) = RunFolder.open(tmp_path / "there").cells()
        assert cell.status == FINISHED
        assert str(tmp_path) not in cell.result().model_dump_json()

    def test_no_run_folder(self, tmp_path):
        with pytest.raises(RunFolderError, match="not a run folder"):
            RunFolder.open(tmp_path)


def test_dataset_of_another_world(dataset):
    with pytest.raises(WorldError, match=r"mine\.npz: collected in world"):
        check_world(dataset, make_world(seed=1), "mine.npz")


def test_a_worker_that_finds_another_world(run_cell, dataset):
    cell = run_cell("whole")
    with pytest.raises(WorldError, match="collected in world .* but the world of diffuse_mix is .* here"):
        CellTraining(cell.folder.description, dataset, make_world(seed=1))


class TestGpuInThisProcess:
    """Errors of a GPU are raised by hand: there is none here."""

    def train(self, tmp_path, dataset, world, world_folder, monkeypatch, error, where):
        def fail(*arguments):
            raise error

        monkeypatch.setattr(in_process, "open_training" if where == "opening" else "describe_report", fail)
        experiment = check_experiment(
            {
                "environment": "diffuse_mix",
                "settings": SETTINGS,
                "worlds": {"diffuse_mix": str(world_folder)},
                "training": {"max_timesteps": 20, "evaluation_interval": 10},
                "evaluation": {"validation_users": 2, "test_users": 0},
            }
        )
        run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
        run.add_cells(experiment.cells())
        told = []
        listener = SimpleNamespace(on_cell=told.append, on_line=lambda line: None, on_training=lambda folder: None)
        source = Source(tmp_path / "mine.npz", dataset, world)
        opened = OpenRun(experiment, run, {"diffuse_mix": source}, listener)
        in_process._train_cell(opened, experiment.cells()[0], lambda: False)
        return told, run.cells()[0]

    @pytest.fixture
    def fail(self, tmp_path, dataset, world, world_folder, monkeypatch):
        return lambda error, where: self.train(tmp_path, dataset, world, world_folder, monkeypatch, error, where)

    def test_memory_that_others_have_at_the_beginning_leaves_the_cell_unfinished(self, fail):
        told, cell = fail(torch.OutOfMemoryError("CUDA out of memory.\nMore lines"), "opening")
        assert [(change.state, change.reason) for change in told] == [(UNFINISHED, "CUDA out of memory.")]
        assert cell.result() is None

    def test_a_gpu_that_fails_is_one_line_and_costs_no_more_than_the_last_report(self, fail):
        with pytest.raises(DeviceError, match=r"the GPU has failed in this process \(CUDA error: oh\)\. .* goes on\.$"):
            fail(torch.AcceleratorError("CUDA error: oh"), "report")
