"""Captured updates on the CPU: the engine is the real one, and a recording of operations stands for the CUDA graph."""

import gc
import weakref

import pytest
import torch

from gems_ray.algorithms import ALGORITHMS
from gems_ray.data.sampler import Sampler
from gems_ray.errors import DeviceError
from gems_ray.learning import engine as engines
from gems_ray.learning.capture import WARM_UP_RUNS, _no_garbage_collection
from gems_ray.learning.engine import EAGER, GRAPH, Engine, GraphEngine, make_engine
from tests.unit.test_algorithms import assert_same
from tests.unit.test_engine import SETTINGS, parts, run, state
from tests.unit.test_tape import tape


def taped(launch, device):
    """What `gems_ray.learning.capture.capture` does on a GPU."""
    for _ in range(WARM_UP_RUNS):
        launch()
    return tape.record(launch)


def graph_engine(name, seed=0, **settings):
    return GraphEngine(*parts(name, seed, **settings), capture=taped)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_captured_updates_are_the_same_to_the_bit(name):
    whole = run(graph_engine(name), 40, reports=(3, 20))
    assert whole.name == GRAPH
    assert_same(state(whole), state(run(Engine(*parts(name)), 40, reports=(3, 20))))


def test_a_long_period_needs_two_graphs():
    """The compiler refuses such a period; here the phases that are alike share a graph."""
    captured = []

    def counted(launch, device):
        captured.append(launch)
        return taped(launch, device)

    settings = {"policy_freq": 23}
    engine = run(GraphEngine(*parts("td3_bc", **settings), capture=counted), 60)
    assert len(captured) == 2
    assert_same(state(engine), state(run(Engine(*parts("td3_bc", **settings)), 60)))


@pytest.mark.parametrize("name", ["td3_bc", "cql"])
def test_phases_that_are_alike_compute_the_same(name):
    settings = {"target_update_period": 3} if name == "cql" else {}
    for phase in range(3):
        outcomes = []
        for of in (phase, parts(name, **settings)[0].first_alike(phase)):
            algorithm, sampler = parts(name, **settings)
            noise = algorithm.draw_noise(algorithm.config.batch_size)
            losses = algorithm.learn(sampler.sample(algorithm.config.batch_size), noise, of)
            outcomes.append(algorithm.state_dict() | losses)
        assert_same(*outcomes)


@pytest.mark.parametrize("stop_after", [28, 31])
def test_interrupted_it_continues_to_the_bit(stop_after, monkeypatch):
    monkeypatch.setattr(engines, "GRAPH_BLOCK_UPDATES", 5)
    whole = state(run(Engine(*parts("td3_bc")), 60, reports=(31,)))
    first = graph_engine("td3_bc")
    for point in (31, 60):
        first.run(point, lambda: first.algorithm.updates >= stop_after)
    assert stop_after <= first.algorithm.updates < stop_after + 5
    second = graph_engine("td3_bc", seed=9)
    second.algorithm.load_state_dict(first.algorithm.state_dict())
    second.sampler.load_state_dict(first.sampler.state_dict())
    second.losses.load_state_dict(first.losses.state_dict())
    reports = [point for point in (31,) if point > second.algorithm.updates]
    assert_same(state(run(second, 60, reports=reports)), whole)


@pytest.mark.parametrize("name", ["td3_bc", "decision_transformer"])
def test_rows_gathered_on_the_host_are_the_same(name, monkeypatch):
    """Where the dataset does not fit on the GPU; one copy brings the rows of a block."""
    expected = state(run(Engine(*parts(name)), 70))
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    engine = graph_engine(name)
    assert not engine.sampler.on_device
    assert_same(state(run(engine, 70)), expected)


def test_the_buffer_of_a_block_is_used_again(monkeypatch):
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    inputs = graph_engine("td3_bc")._inputs
    addresses = {column.data_ptr() for column in inputs._columns.values()}
    for _ in range(3):
        inputs.fill(4)
        assert {column.data_ptr() for column in inputs._columns.values()} == addresses
    (storage,) = {column.untyped_storage().data_ptr() for column in inputs._columns.values()}
    assert storage == inputs._buffer.data_ptr(), "all columns lie in it, so that one copy is enough"


def test_gradients_can_be_read_at_a_report():
    eager, captured = Engine(*parts("td3_bc")), graph_engine("td3_bc")
    for engine in (eager, captured):
        run(engine, 40)
    for name in ("actor", "critic"):
        norms = [engine.algorithm.optimizers[name].gradient_norm() for engine in (eager, captured)]
        assert torch.equal(*norms)


def broken(launch, device):
    launch()
    raise RuntimeError("operation not permitted when stream is capturing\nin a file")


def test_a_capture_that_fails_goes_on_one_by_one():
    warned = []
    algorithm, sampler = parts("td3_bc")
    engine = GraphEngine(algorithm, sampler, lambda name, error: warned.append((name, str(error))), broken)
    assert_same(state(run(engine, 40)), state(run(Engine(*parts("td3_bc")), 40)))
    assert engine.name == EAGER
    assert len(warned) == 1, "it is not tried again"
    with pytest.raises(RuntimeError, match="not permitted"):
        run(GraphEngine(*parts("td3_bc"), capture=broken), 40)


def test_a_capture_that_leaves_the_gpu_broken_ends_the_process(monkeypatch):
    """The probe after the failure: a GPU that does not answer is no reason to go on one by one."""

    def dead(device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(engines, "wait_for", dead)
    warned = []
    engine = GraphEngine(*parts("td3_bc"), lambda *failure: warned.append(failure), broken)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        run(engine, 40)
    assert not warned


def test_exhausted_memory_during_a_capture_is_itself():
    def exhausted(launch, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        run(GraphEngine(*parts("td3_bc"), lambda *failure: None, exhausted), 40)


class OnCuda:
    """What the choice of an engine asks of an algorithm on a GPU."""

    device, name, period, evaluations_per_row = torch.device("cuda:0"), "td3_bc", 2, 1


@pytest.fixture
def chosen(monkeypatch):
    """Name and reason of the engine that is chosen on a GPU."""

    class Chosen:
        def __init__(self, algorithm, sampler, on_failure=None):
            self.kind = type(self).__name__

    for name in ("Engine", "GraphEngine", "CompiledEngine"):
        monkeypatch.setattr(engines, name, type(name, (Chosen,), {}))

    def choose(mode, updates, missing=None, algorithm=OnCuda):
        monkeypatch.setattr(engines, "missing_for_compilation", lambda cuda: missing)
        engine = make_engine(algorithm, None, mode, updates)
        return engine.kind, engine.why

    return choose


def test_which_engine_runs_on_a_gpu_and_why(chosen):
    assert chosen("auto", 1_000) == ("GraphEngine", "auto: 1,000 updates are too few for the compiler")
    assert chosen("auto", 10**6) == ("CompiledEngine", "auto: 1,000,000 updates are worth compiling")
    assert chosen("auto", 10**6, "triton") == ("GraphEngine", "auto: triton is not here, which the compiler needs")
    assert chosen("off", 10**6)[0] == "Engine"
    assert chosen("graph", 10**6, "g++") == ("GraphEngine", "training.compile is graph")
    long_period = type("LongPeriod", (OnCuda,), {"period": 40})
    kind, why = chosen("auto", 10**6, algorithm=long_period)
    assert (kind, why) == ("GraphEngine", "auto: a period of 40 updates is too long for the compiler")
    assert chosen("graph", 10, algorithm=long_period)[0] == "GraphEngine"


def test_why_an_engine_runs_on_a_cpu(monkeypatch):
    monkeypatch.setattr(engines, "missing_for_compilation", lambda cuda: None)
    assert "too few" in make_engine(*parts("bc"), "auto", 10).why
    assert "cql gain nothing" in make_engine(*parts("cql"), "auto", 10**6).why
    assert "worth compiling" in make_engine(*parts("bc"), "auto", 10**6).why
    with pytest.raises(DeviceError, match="only a GPU has graphs"):
        make_engine(*parts("bc"), "graph", 10)


def test_an_engine_is_gone_when_nobody_has_it():
    """40 cells in one process: what a cell took is free for the next one, at the latest after a collection."""
    engine = run(graph_engine("bc"), 10)
    gone = weakref.ref(engine.algorithm), weakref.ref(engine._inputs)
    del engine
    gc.collect()
    assert [reference() for reference in gone] == [None, None]


def test_no_garbage_is_collected_during_a_capture():
    assert gc.isenabled()
    with _no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_settings_of_every_algorithm_are_here():
    assert set(SETTINGS) == set(ALGORITHMS)
