"""What only a GPU can show; the same is checked on the CPU as far as that goes (test_tape.py, test_graph_engine.py)."""

import gc

import pytest
import torch

from gems_ray.algorithms import ALGORITHMS, make_algorithm
from gems_ray.data.sampler import Sampler
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import Dataset
from gems_ray.learning.engine import GRAPH, PACK_GRAPH, Engine, GraphEngine
from gems_ray.learning.memory import largest_batch
from gems_ray.learning.pack_engine import PackEngine
from tests.unit.test_algorithms import assert_same
from tests.unit.test_data import plain_arrays
from tests.unit.test_engine import SETTINGS, run, state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


def parts(name, **settings):
    dataset = Dataset(**plain_arrays(300))
    algorithm = make_algorithm(name, 20, 32, SETTINGS[name] | settings, "cuda")
    sampler = make_sampler(
        algorithm.experience,
        dataset,
        seed=0,
        device="cuda",
        normalize_states=True,
        reward_scale="none",
        bootstrap_time_limit=False,
    )
    return algorithm, sampler


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_captured_updates_are_the_same_to_the_bit(name):
    whole = run(GraphEngine(*parts(name)), 200, reports=(3, 30))
    assert whole.name == GRAPH
    assert_same(state(whole), state(run(Engine(*parts(name)), 200, reports=(3, 30))))


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_captured_updates_of_a_pack_are_the_same_to_the_bit(name):
    eager, captured = ([Engine(*parts(name)) for _ in range(3)] for _ in range(2))
    run(PackEngine(eager), 200, reports=(3, 30))
    assert run(PackEngine(captured, graphs=True), 200, reports=(3, 30)).name == PACK_GRAPH
    for one, other in zip(captured, eager, strict=True):
        assert_same(state(one), state(other))


@pytest.mark.parametrize("name", ["td3_bc", "decision_transformer"])
def test_the_host_never_waits_in_50_blocks(name, monkeypatch):
    for fits in (True, False):
        monkeypatch.setattr(Sampler, "_fits", lambda self, columns, fits=fits: fits)
        engine = run(GraphEngine(*parts(name)), 10)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(50):
                engine.block(4)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_rows_gathered_on_the_host_are_the_same(monkeypatch):
    expected = state(run(Engine(*parts("td3_bc")), 200))
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    assert_same(state(run(GraphEngine(*parts("td3_bc")), 200)), expected)


def test_40_cells_in_one_process_take_no_more_than_one():
    taken = []
    for _ in range(40):
        engine = run(GraphEngine(*parts("td3_bc")), 10)
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        taken.append(total - free)
    assert taken[-1] <= taken[4] + 16 * 10**6


def test_a_capture_that_fails_leaves_the_gpu_usable():
    def waiting(batch, noise, phase):
        torch.cuda.synchronize()  # not allowed during a capture
        raise AssertionError("the capture should have failed before")

    algorithm, sampler = parts("bc")
    learn, calls = algorithm.learn, []

    def learn_and_wait(*arguments):
        calls.append(torch.cuda.is_current_stream_capturing())
        return waiting(*arguments) if calls[-1] else learn(*arguments)

    algorithm.learn = learn_and_wait
    warned = []
    engine = GraphEngine(algorithm, sampler, lambda *failure: warned.append(failure))
    stream = torch.cuda.current_stream()
    assert_same(state(run(engine, 40)), state(run(Engine(*parts("bc")), 40)))
    assert len(warned) == 1
    assert torch.cuda.current_stream() == stream


def test_the_largest_batch_is_found_on_a_device_that_was_named_without_its_number():
    algorithm, sampler = parts("td3_bc")
    assert algorithm.device == torch.device("cuda:0")
    assert largest_batch(algorithm, sampler) >= 64
