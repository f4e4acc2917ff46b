"""Captured packs on the CPU: the engine is the real one, and a recording of operations stands for the CUDA graph."""

import pytest
import torch

from gems_ray.algorithms import ALGORITHMS
from gems_ray.data.sampler import Sampler
from gems_ray.errors import DeviceError
from gems_ray.learning import pack_engine
from gems_ray.learning.engine import PACK, PACK_GRAPH, Engine, on_failure
from gems_ray.learning.pack_engine import PackEngine
from tests.unit.test_algorithms import assert_same
from tests.unit.test_engine import parts, run, state
from tests.unit.test_graph_engine import taped

DIFFERING = {"td3_bc": "alpha", "cql": "alpha", "iql": "beta"}  # a setting that differs between the cells


def cells(name, number=3, **settings):
    own = [{DIFFERING[name]: 1.0 + seed} if name in DIFFERING else {} for seed in range(number)]
    return [Engine(*parts(name, seed, **settings, **own[seed])) for seed in range(number)]


def states(members):
    return [state(member) for member in members]


def assert_all_same(first, second):
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_captured_updates_of_a_pack_are_the_same_to_the_bit(name):
    eager, captured = cells(name), cells(name)
    run(PackEngine(eager), 40, reports=(3, 20))
    whole = run(PackEngine(captured, graphs=True, capture=taped), 40, reports=(3, 20))
    assert whole.name == PACK_GRAPH
    assert_all_same(states(captured), states(eager))
    weights = [of_cell.algorithm.state_dict() for of_cell in captured]
    assert any(not torch.equal(weights[0][key], weights[1][key]) for key in weights[0] if "noise" not in key)


def test_gradients_can_be_read_at_a_report():
    eager, captured = cells("td3_bc"), cells("td3_bc")
    run(PackEngine(eager), 40)
    run(PackEngine(captured, graphs=True, capture=taped), 40)
    for one, other in zip(eager, captured, strict=True):
        for name in ("actor", "critic"):
            norms = [member.algorithm.optimizers[name].gradient_norm() for member in (one, other)]
            assert torch.equal(*norms)


def test_rows_gathered_on_the_host_are_the_same(monkeypatch):
    eager = cells("td3_bc")
    run(PackEngine(eager), 40)
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    captured = cells("td3_bc")
    assert not captured[0].sampler.on_device
    run(PackEngine(captured, graphs=True, capture=taped), 40)
    assert_all_same(states(captured), states(eager))


def test_interrupted_and_in_another_pack_it_continues_to_the_bit(monkeypatch):
    monkeypatch.setattr(pack_engine, "GRAPH_BLOCK_UPDATES", 5)
    whole = cells("td3_bc")
    run(PackEngine(whole), 60, reports=(31,))
    first = cells("td3_bc")
    pack = PackEngine(first, graphs=True, capture=taped)
    pack.run(31, lambda: pack.algorithm.updates >= 13)
    assert 13 <= pack.algorithm.updates < 31
    pack.release()
    second = cells("td3_bc")
    for old, new in zip(first, second, strict=True):
        new.algorithm.load_state_dict(old.algorithm.state_dict())
        new.sampler.load_state_dict(old.sampler.state_dict())
        new.losses.load_state_dict(old.losses.state_dict())
    run(PackEngine(second, graphs=True, capture=taped), 60, reports=(31,))
    assert_all_same(states(second), states(whole))


def test_where_capturing_fails_the_pack_goes_on_without_it():
    def failing(launch, device):
        launch()
        raise RuntimeError("no graphs today\nfurther lines")

    expected, lines = cells("td3_bc"), []
    run(PackEngine(expected), 40)
    members = cells("td3_bc")
    warned = lambda name, error: on_failure("auto", lines.append, name, error)  # noqa: E731
    pack = run(PackEngine(members, graphs=True, on_failure=warned, capture=failing), 40)
    assert pack.name == PACK
    (line,) = lines
    assert "capturing updates as a graph fails here, so updates run one by one (no graphs today)" in line
    assert_all_same(states(members), states(expected))
    asked = lambda name, error: on_failure("graph", lines.append, name, error)  # noqa: E731
    with pytest.raises(DeviceError, match="training.compile graph: capturing"):
        run(PackEngine(cells("td3_bc"), graphs=True, on_failure=asked, capture=failing), 40)
