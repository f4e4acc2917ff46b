"""Cells that share a program under Tune: each has its own reports, checkpoints, record and end."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event
from types import SimpleNamespace

import pytest
import torch
from ray.tune.utils.util import flatten_dict

from gems_ray.errors import TrainingError
from gems_ray.experiments.cell_folder import FAILED, FINISHED, PRUNED
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import Fingerprints
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.learning.pack import Pack
from gems_ray.learning.trainer import Trainer
from gems_ray.tune import cell_queue, offline_rl
from gems_ray.tune.cell_queue import CellQueue
from gems_ray.tune.evaluators import PolicyEvaluator
from gems_ray.tune.offline_rl import SET_BACK, OfflineRL
from gems_ray.tune.run_end import RunEnd
from gems_ray.tune.search import PruningAsha
from tests.unit.conftest import MACHINE
from tests.unit.test_callbacks import SEARCH, report
from tests.unit.test_offline_rl import CONFIG, make, run_to_end  # noqa: F401 - `make` is a fixture

NUMBERS = ("updates", "evaluated_updates", "best_updates", "train/q_policy", "train/critic_loss")


def config_of_seed(seed, world, checkpoint=None):
    settings = {**CONFIG["settings"], "alpha": 1.0 + seed}
    where = checkpoint and {"storage": str(checkpoint.parent), "path": checkpoint.name}
    return {**CONFIG, "settings": settings, "seed": seed, "cell": f"cell{seed}", "world": world, "checkpoint": where}


def pack_of(world, *seeds, checkpoints=None):
    first, *others = (config_of_seed(seed, world, checkpoints and checkpoints / f"cell{seed}") for seed in seeds)
    return {**first, "pack": others}


def reports_of(result):
    return [result, *result["pack"].values()]


def assert_alike(first, second):
    assert (first["status"], first["reason"]) == (second["status"], second["reason"])
    shown = [[report[key] for key in NUMBERS] for report in (first, second)]
    assert shown[0] == pytest.approx(shown[1], rel=1e-3, nan_ok=True)


def test_every_cell_of_a_pack_reports_as_alone_and_goes_on_alone_and_back(make, world_folder, tmp_path):  # noqa: F811
    world = str(world_folder)
    alone = [run_to_end(make(config=config_of_seed(seed, world))) for seed in range(3)]
    pack = make(config=pack_of(world, 0, 1, 2))
    results = [pack.step()]
    while results[-1]["evaluated_updates"] < 50:
        results.append(pack.step())
    saved = tmp_path / "pack"
    saved.mkdir()
    pack.save_checkpoint(str(saved))
    results += run_to_end(pack)
    assert len(results) == len(alone[0])
    for result, of_cells in zip(results, zip(*alone, strict=True), strict=True):
        for found, expected in zip(reports_of(result), of_cells, strict=True):
            assert_alike(found, expected)
    assert results[-1]["pack"]["cell1"]["test/last/return_mean"] > 0

    single = make(config=config_of_seed(1, world, saved / "cell1"))
    single.step()
    (tmp_path / "again" / "cell1").mkdir(parents=True)
    single.save_checkpoint(str(tmp_path / "again" / "cell1"))
    assert_alike(run_to_end(single)[-1], alone[1][-1])
    (tmp_path / "again" / "cell2").mkdir()
    (saved / "cell2").rename(tmp_path / "again" / "cell2")  # one evaluation behind: it catches up
    back = run_to_end(make(config=pack_of(world, 1, 2, checkpoints=tmp_path / "again")))
    assert_alike(reports_of(back[-1])[0], alone[1][-1])
    assert_alike(reports_of(back[-1])[1], alone[2][-1])


@pytest.fixture
def evaluators(monkeypatch):
    """Evaluators that are threads of this process in place of actors; they begin when the returned event is set."""
    may_begin, pool = Event(), ThreadPoolExecutor(1)
    may_begin.set()

    def start(number, pack, world, evaluation, algorithms):
        users = {"validation": evaluation.validation_users, "test": evaluation.test_users}
        evaluator = PolicyEvaluator(pack, world, users, algorithms)

        def evaluate(*policy):
            may_begin.wait()
            return evaluator.evaluate(*policy)

        return lambda *policy: pool.submit(evaluate, *policy)

    monkeypatch.setattr(offline_rl, "Evaluators", start)
    yield may_begin
    may_begin.set()
    pool.shutdown()


def evaluations(results, position):
    """What each evaluation of a cell found, by its updates; reports between two evaluations repeat the last one."""
    found = {}
    for result in results:
        report = reports_of(result)[position]
        found.setdefault(report["evaluated_updates"], [report[key] for key in ("eval/return_mean", *NUMBERS[2:4])])
    return found


def test_policies_that_are_evaluated_beside_the_training_have_the_same_numbers(make, world_folder, evaluators):  # noqa: F811
    config = pack_of(str(world_folder), 0, 1, 2)
    waiting = run_to_end(make(config=config))
    beside = run_to_end(make(config={**config, "resources": {"cpu": 2}}))
    assert beside[0].keys() == beside[-1].keys(), "the same keys from the first report on"
    assert any(one["updates"] > one["evaluated_updates"] for one in beside), "training went on meanwhile"
    for position in range(3):
        assert evaluations(beside, position) == evaluations(waiting, position)
        tests = [
            {key: value for key, value in reports_of(run[-1])[position].items() if key.startswith("test/")}
            for run in (waiting, beside)
        ]
        assert tests[0] == tests[1] and len(tests[0]) > 10


@pytest.mark.parametrize("cpu", [1, 2])
def test_what_is_evaluated_when_a_checkpoint_is_written_is_evaluated_again(
    make,  # noqa: F811
    world_folder,
    tmp_path,
    evaluators,
    cpu,
):
    world = str(world_folder)
    expected = run_to_end(make(config=pack_of(world, 0, 1)))
    pack = make(config={**pack_of(world, 0, 1), "resources": {"cpu": 2}}, slice_s=0.05)
    pack.step()
    evaluators.clear()
    while (last := pack.step())["updates"] == 0:
        pass
    assert last["evaluated_updates"] == 0
    pack.save_checkpoint(str(tmp_path))
    evaluators.set()
    config = pack_of(world, 0, 1, checkpoints=tmp_path)
    going_on = run_to_end(make(config={**config, "resources": {"cpu": cpu}}))
    for position in range(2):
        found, whole = (evaluations(results, position) for results in (going_on, expected))
        assert found == {updates: whole[updates] for updates in found} and {50, 60, 100, 120} <= set(found)
    alone = run_to_end(make(config=config_of_seed(1, world, tmp_path / "cell1")))
    assert_alike(alone[-1], reports_of(expected[-1])[1])
    assert {50, 60, 100, 120} <= {one["evaluated_updates"] for one in alone}


def test_a_pack_gives_its_evaluators_a_cpu_each_and_a_single_cell_none():
    def bundles(cells, cpu):
        config = {"resources": {"cpu": cpu, "gpu": 1}, "pack": [{}] * (cells - 1)}
        return OfflineRL.default_resource_request(config).bundles

    assert bundles(3, 3) == [{"CPU": 1, "GPU": 1}, {"CPU": 1}, {"CPU": 1}]
    assert bundles(3, 2.5) == [{"CPU": 1.5, "GPU": 1}, {"CPU": 1}]
    assert bundles(2, 8) == [{"CPU": 6, "GPU": 1}, {"CPU": 1}, {"CPU": 1}]
    assert bundles(3, 0.5) == [{"CPU": 0.5, "GPU": 1}]
    assert bundles(1, 4) == [{"CPU": 4, "GPU": 1}]


def test_a_cell_that_fails_leaves_the_others_alone(make, world_folder, tmp_path, monkeypatch):  # noqa: F811
    advance = Trainer.advance

    def failing(self, *arguments):
        if self.algorithm.config.alpha == 2.0 and self.updates:
            raise TrainingError("a loss is not finite")
        return advance(self, *arguments)

    monkeypatch.setattr(Trainer, "advance", failing)
    one = make(config=pack_of(str(world_folder), 0, 1), raise_errors=False)
    last = run_to_end(one)[-1]
    one.save_checkpoint(str(tmp_path))
    assert [folder.name for folder in tmp_path.iterdir()] == ["cell0"]
    assert (last["status"], last["updates"]) == (FINISHED, 120)
    assert (last["pack"]["cell1"]["status"], last["pack"]["cell1"]["reason"]) == (FAILED, "a loss is not finite")


def test_a_gpu_that_is_full_while_a_pack_is_formed_sets_the_cells_back(make, world_folder, monkeypatch):  # noqa: F811
    def full(self, trainers):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Pack, "__init__", full)
    last = run_to_end(make(config=pack_of(str(world_folder), 0, 1), raise_errors=False))[-1]
    assert last["status"] == SET_BACK


@pytest.fixture
def run(tmp_path):
    experiment = check_experiment(
        {
            "environment": "diffuse_mix",
            "algorithm": ["td3_bc", "bc"],
            "seed": [0, 1, 2],
            "resources": {"pack": 2},
        }
    )
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    return run


@pytest.fixture
def queue(run, monkeypatch):
    monkeypatch.setattr(cell_queue, "FIRST_BACK_OFF_SECONDS", 0.0)
    source = SimpleNamespace(fingerprints=Fingerprints())
    queue = CellQueue(run, {"diffuse_mix": source}, run.experiment().resources, lambda change: None, RunEnd())
    queue.add(run.experiment().cells())
    return queue


def trial_of(config, first, *others):
    names = [other["cell"] for other in config.get("pack", ())]
    return SimpleNamespace(config=config, last_result={**first, "pack": dict(zip(names, others, strict=True))})


def kinds(config):
    return [(each["algorithm"], each["seed"]) for each in (config, *config.get("pack", ()))]


def test_only_cells_of_one_kind_are_packed(queue):
    taken = [kinds(config) for config in iter(queue.take, None)]
    assert taken == [[("td3_bc", 0), ("td3_bc", 1)], [("td3_bc", 2)], [("bc", 0), ("bc", 1)], [("bc", 2)]]


def test_cells_of_a_pack_are_recorded_one_by_one(run, queue):
    config = queue.take()
    trial = trial_of(config, report(50), report(50, status=FAILED, reason="mine"))
    first, second = (run.cell(each["cell"]) for each in (config, *config["pack"]))
    queue.on_trial_start(0, [], trial)
    queue.on_trial_result(0, [], trial, trial.last_result)
    queue.on_checkpoint(0, [], trial, SimpleNamespace(path=f"{run.storage}/a/trial/checkpoint_0"))
    assert first.checkpoint().path == f"a/trial/checkpoint_0/{config['cell']}"
    assert second.checkpoint() is None, "what has failed is not saved"
    assert (second.status, second.result().reason) == (FAILED, "mine")

    queue.on_trial_error(0, [], trial)  # the process is lost: the cell that has not ended is tried again
    again = queue.take()
    while again["cell"] != config["cell"]:
        again = queue.take()
    assert again["checkpoint"]["path"].endswith(config["cell"])
    assert "pack" not in again


def test_asha_stops_cells_of_a_pack_one_by_one(run, queue):
    search = {"objectives": ["return"], **SEARCH}
    asha = PruningAsha(check_experiment({"environment": "diffuse_mix", "search": search}), run, RunEnd(), at_once=1)
    config = queue.take()
    first, second = (run.cell(each["cell"]) for each in (config, *config["pack"]))
    value = "eval/return_mean"
    rest = {"eval/return_se": 0.5, "eval/best_return_mean": 9.0}
    trial = trial_of(config, report(50, **{value: 4.0}, **rest), report(50, **{value: 1.0}, **rest))
    asha.on_trial_add(None, trial)
    queue.on_trial_start(0, [], trial)
    assert asha.on_trial_result(None, trial, flatten_dict(trial.last_result)) == "CONTINUE"
    queue.on_trial_result(0, [], trial, trial.last_result)
    assert (first.status == PRUNED, second.status) == (False, PRUNED)
    later = trial_of(config, report(100, **{value: 4.0}, **rest), report(100, **{value: 9.0}, **rest))
    assert asha.on_trial_result(None, later, flatten_dict(later.last_result)) == "CONTINUE"
    queue.on_trial_result(0, [], later, later.last_result)
    assert second.result().updates == 50
    assert queue.end.error is None
    assert [row[value] for row in second.metrics()] == [1.0], "the evaluation that stopped it, and none after it"
