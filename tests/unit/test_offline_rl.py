"""The trainable without Ray around it: what a step returns, exact continuation, the machine's errors and the cell's."""

import contextlib
import gc
import math
import resource
import weakref
from types import SimpleNamespace

import psutil
import pytest
import ray
import torch
from ray.exceptions import ObjectLostError

from gems_ray.errors import CheckpointError, ConfigError, TrainingError
from gems_ray.tune import offline_rl
from gems_ray.tune.offline_rl import OfflineRL, cell_of, config_of, label

CLOCK = ("seconds", "updates_per_second")
CONFIG = {
    "environment": "diffuse_mix",
    "algorithm": "td3_bc",
    "settings": {"hidden_sizes": [16, 16], "batch_size": 32},
    "training": {"max_timesteps": 120, "evaluation_interval": 60},
    "evaluation": {"validation_users": 4, "test_users": 5},
}


@pytest.fixture
def make(dataset, world_folder, monkeypatch):
    """Opens the trainable as a worker of Ray does; `ray.get` hands on what it is given, or raises it."""

    def get(reference):
        if isinstance(reference, Exception):
            raise reference
        return reference

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")

    def make_trainable(data=None, config=CONFIG, **parameters):
        config = {**config, "world": str(world_folder)}
        one = OfflineRL.__new__(OfflineRL)
        one.config, one._trial_info, one._storage, one._last_result = config, None, None, None
        one.setup(config, dataset=data or dataset, **parameters)
        return one

    return make_trainable


def run_to_end(one):
    results = [one.step()]
    while not results[-1]["done"]:
        results.append(one.step())
    return results


def timeless(results):
    return [{key: value for key, value in result.items() if key not in (*CLOCK, "log")} for result in results]


def same(one, other):
    assert one.keys() == other.keys()
    different = {key for key in one if one[key] != other[key] and not one[key] != one[key] != other[key]}
    assert not different, different


def test_a_step_is_an_evaluation(make):
    """The keys are the same from the first result on, as loggers want; values are scalars."""
    results = run_to_end(make())
    assert [result["updates"] for result in results] == [0, 50, 60, 100, 120]
    assert [result["evaluated_updates"] for result in results] == [0, 50, 60, 100, 120]
    assert {frozenset(result) for result in results} == {frozenset(results[0])}
    assert all(isinstance(value, int | float | str) for result in results for value in result.values())
    assert math.isnan(results[-2]["test/last/return_mean"])
    last = results[-1]
    assert (last["status"], last["test/last/users"], last["done"]) == ("finished", 5, True)
    assert last["eval/best_return_mean"] == max(result["eval/return_mean"] for result in results)
    assert "should_checkpoint" not in last


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_continued_in_another_process_it_ends_with_the_same_numbers(make, tmp_path, steps):
    whole = run_to_end(make())
    first = make()
    for _ in range(steps):
        first.step()
    first.save_checkpoint(str(tmp_path))
    second = make()
    second.load_checkpoint(str(tmp_path))
    same(timeless(run_to_end(second))[-1], timeless(whole)[-1])


def test_slices_change_nothing_but_the_number_of_results(make, tmp_path):
    whole = run_to_end(make())
    sliced = run_to_end(make(slice_s=0.01))
    assert len(sliced) > len(whole)
    assert all(result["should_checkpoint"] for result in sliced)
    same({**timeless(sliced)[-1], "should_checkpoint": 1}, {**timeless(whole)[-1], "should_checkpoint": 1})
    begun = make(slice_s=0.001)
    while not (updates := begun.step()["updates"]):
        pass
    assert 0 < updates < 50, "in the middle of the way to the next evaluation"
    begun.save_checkpoint(str(tmp_path))
    second = make()
    second.load_checkpoint(str(tmp_path))
    assert second._training.trainer.updates == updates
    same(timeless(run_to_end(second))[-1], timeless(whole)[-1])


def test_a_used_process_is_as_good_as_a_new_one(make):
    whole = run_to_end(make())
    used = make(config={**CONFIG, "seed": 5})
    used.step()
    assert repr(used) == "td3_bc diffuse_mix seed 5 hidden_sizes [16, 16] batch_size 32"
    config = {**CONFIG, "seed": 0, "world": used.config["world"]}
    assert used.reset_config(config)
    assert repr(used).startswith("td3_bc diffuse_mix seed 0")
    same(timeless(run_to_end(used))[-1], timeless(whole)[-1])


def test_a_process_of_many_cells_has_a_name_that_stays_true(make):
    """Ray asks for the name once; the title of the process, which is set at every step, tells what is trained."""
    used = make(process_name="OfflineRL of run demo, one short cell after another")
    before = psutil.Process().cmdline()
    try:
        for seed in (5, 6):
            used.reset_config({**CONFIG, "seed": seed, "world": used.config["world"]})
            used.step()
            assert repr(used) == "OfflineRL of run demo, one short cell after another"
            title = " ".join(psutil.Process().cmdline())
            assert title.startswith(f"ray::td3_bc diffuse_mix seed {seed} hidden_sizes")
    finally:
        ray._raylet.setproctitle(" ".join(before))


def test_other_settings_go_on_from_a_checkpoint(make, tmp_path):
    """What population based training does: weights and moments of one trial, alpha and step size of another."""
    first = make()
    first.step()
    first.step()
    first.save_checkpoint(str(tmp_path))
    settings = {**CONFIG["settings"], "alpha": 0.5, "learning_rate": 1e-5}
    other = make(config={**CONFIG, "settings": settings})
    other.load_checkpoint(str(tmp_path))
    algorithm = other._training.trainer.algorithm
    assert (algorithm.updates, algorithm.config.alpha) == (50, 0.5)
    weights = [parameter.detach() for parameter in algorithm.networks["critic_1"].parameters()]
    before = [weight.clone() for weight in weights]
    other.step()
    steps = max(float((old - new).abs().max()) for old, new in zip(before, weights, strict=True))
    assert steps < 10 * 1e-5 * 2, "ten updates of Adam with the new step size"


def test_a_checkpoint_of_something_else_is_refused(make, tmp_path):
    one = make()
    one.step()
    one.save_checkpoint(str(tmp_path))
    with pytest.raises(CheckpointError):
        make(config={**CONFIG, "algorithm": "bc"}).load_checkpoint(str(tmp_path))
    (tmp_path / "policy.safetensors").unlink()
    with pytest.raises(CheckpointError):
        make().load_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"enviroment": "diffuse_mix"}, "config: `enviroment` is not known"),
        ({"environment": "diffuse_mixx"}, "Did you mean `diffuse_mix`"),
        ({"environment": "diffuse_mix", "settings": {"alfa": 1}}, "Did you mean `alpha`"),
        ({"environment": ["diffuse_mix", "diffuse_divpen"]}, "one environment, one algorithm and one seed"),
    ],
)
def test_mistakes_in_the_config_are_one_line(config, message):
    with pytest.raises(ConfigError, match=message) as caught:
        cell_of(config)
    assert "\n" not in str(caught.value)


def test_the_config_of_a_cell_is_that_cell():
    cell = cell_of({**CONFIG, "seed": 3})
    again = cell_of(config_of(cell))
    assert config_of(again) == config_of(cell)
    assert label(config_of(cell)).startswith("td3_bc diffuse_mix seed 3")


def test_a_mistake_of_the_cell_is_raised_or_told(make):
    bad = {**CONFIG, "settings": {**CONFIG["settings"], "learning_rate": 1e30}}
    one = make(config=bad)
    one.step()
    with pytest.raises(TrainingError, match="not finite"):
        one.step()
    told = run_to_end(make(config=bad, raise_errors=False))[-1]
    assert told["status"] == "failed"
    assert "a loss is not finite" in told["reason"]


def test_a_lost_dataset_is_no_mistake_of_the_cell(make):
    lost = {"diffuse_mix": ObjectLostError("abc", None, "somewhere")}
    told = make(lost, raise_errors=False).step()
    assert (told["status"], told["done"]) == ("set back", True)
    assert told["reason"]
    assert "\n" not in told["reason"]
    with pytest.raises(ObjectLostError):
        make(lost)


def test_an_unexpected_error_has_its_traceback_in_the_log(make, monkeypatch):
    one = make(raise_errors=False)
    one.step()

    def break_down(*arguments):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(one._training.trainer.algorithm, "learn", break_down)
    told = one.step()
    assert (told["status"], told["reason"]) == ("failed", "ZeroDivisionError: oh (the traceback is in the cell's log)")
    assert "break_down" in told["log"]


@contextlib.contextmanager
def full_disk(size):
    """No file can grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_trial_and_says_so(make, tmp_path):
    one = make(slice_s=1.0, raise_errors=False)
    one.step()
    with full_disk(1_000):
        assert one.save(str(tmp_path / "full")).checkpoint is None
    updates = one._training.trainer.updates
    told = one.step()
    assert (told["status"], told["done"], told["updates"]) == ("set back", True, updates)
    assert "File too large" in told["reason"]


def test_threads_and_resources(make):
    make()
    assert torch.get_num_threads() == 1
    request = OfflineRL.default_resource_request({"resources": {"cpu": 2, "gpu": 0.25}})
    assert request.required_resources == {"CPU": 2, "GPU": 0.25}
    assert OfflineRL.default_resource_request({}).required_resources == {"CPU": 1}


class TestGpu:
    """What a worker does with its share of a GPU, as far as that can be told without one."""

    def test_a_trial_without_a_share_is_trained_on_the_cpu(self, make, monkeypatch):
        """On some nodes it sees all GPUs of the machine all the same."""
        devices = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

        def opened(cell, *arguments):
            devices.append(cell.training.device)

        monkeypatch.setattr(offline_rl, "open_training", opened)
        make()
        assert devices == ["cpu"]
        with pytest.raises(ConfigError, match="device is cuda, but the trial has no GPU"):
            make(config={**CONFIG, "training": {**CONFIG["training"], "device": "cuda"}})

    @pytest.fixture
    def share(self, monkeypatch):
        """The trial has a share of a GPU."""
        request = OfflineRL.default_resource_request({"resources": {"cpu": 1, "gpu": 0.25}})
        monkeypatch.setattr(OfflineRL, "trial_resources", request)

    def test_a_share_that_torch_cannot_use_is_told(self, make, share):
        log = make().step()["log"]
        assert "has 0.25 of a GPU, and torch cannot use it here: trains on the CPU" in log
        assert "engine eager (auto: 120 updates are too few for the compiler)" in log

    def test_a_share_leaves_room_for_the_context(self, make, share, monkeypatch):
        capped = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=10**10))
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: capped.append(given))
        monkeypatch.setattr(offline_rl, "open_training", lambda *arguments: None)
        make()
        assert capped == [(pytest.approx(0.2), 0)]

    def test_a_gpu_that_fails_ends_the_process(self, make, monkeypatch):
        """An error that leaves the step makes Tune end the process; the queue takes the cell up in a new one."""
        one = make(raise_errors=False)
        one.step()

        def fail(*arguments):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr(one._training.trainer.algorithm, "learn", fail)
        with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
            one.step()

    def test_memory_that_is_exhausted_at_the_beginning_is_a_set_back(self, make, monkeypatch):
        def full(*arguments):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

        monkeypatch.setattr(offline_rl, "open_training", full)
        told = make(raise_errors=False).step()
        assert (told["status"], told["done"]) == ("set back", True)
        assert "out of memory" in told["reason"]

    def test_the_cell_before_is_gone_when_the_next_one_begins(self, make, monkeypatch):
        """Else its memory is taken when the next cell asks whether its dataset fits on the GPU."""
        used = make()
        used._training.itself = used._training  # as compiled code and captured graphs refer to their engine
        before, real = weakref.ref(used._training.trainer.algorithm), offline_rl.open_training
        found = []

        def opened(*arguments):
            found.append(before())
            return real(*arguments)

        monkeypatch.setattr(offline_rl, "open_training", opened)
        gc.disable()
        try:
            used.reset_config(used.config)
        finally:
            gc.enable()
        assert found == [None]
