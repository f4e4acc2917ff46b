"""Compiled updates: the same learning as one by one, continued exactly, from data on the device or on the host."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.sampler import Sampler
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import Dataset
from gems_ray.errors import DeviceError
from gems_ray.learning import engine as engines
from gems_ray.learning.engine import CompiledEngine, Engine, make_engine
from tests.unit.test_data import plain_arrays

NETWORKS = {"hidden_sizes": [16, 16], "batch_size": 32}
SETTINGS = {
    "td3_bc": NETWORKS | {"policy_freq": 3},
    "iql": NETWORKS | {"max_timesteps": 50},
    "cql": NETWORKS | {"num_actions": 2, "lagrange": True, "max_target_backup": True, "target_update_period": 2},
    "bc": NETWORKS,
    "bc_best": NETWORKS | {"best_fraction": 0.5},
    "decision_transformer": {
        "embedding_dim": 16,
        "num_layers": 1,
        "sequence_length": 3,
        "warm_up_steps": 10,
        "batch_size": 16,
    },
}
NEEDS_COMPILER = pytest.mark.skipif(
    engines.missing_for_compilation(False) is not None, reason=f"no {engines.missing_for_compilation(False)}"
)


def parts(name, seed=0, **settings):
    dataset = Dataset(**plain_arrays(300))
    algorithm = make_algorithm(name, 20, 32, SETTINGS[name] | settings, seed=seed)
    sampler = make_sampler(
        algorithm.experience,
        dataset,
        algorithm.select_rows(dataset.rewards, dataset.terminals),
        seed=seed,
        device="cpu",
        normalize_states=True,
        reward_scale="none",
        bootstrap_time_limit=False,
    )
    return algorithm, sampler


def run(engine, until, reports=(30,)):
    for point in [point for point in reports if point < until] + [until]:
        engine.run(point, lambda: False)
    return engine


def state(engine):
    losses = {f"losses.{key}": value for key, value in engine.losses.state_dict().items()}
    return engine.algorithm.state_dict() | engine.sampler.state_dict() | losses


QUICKLY_COMPILED = ("td3_bc", "decision_transformer")  # one of each kind of experience; the others are among the slow


@NEEDS_COMPILER
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICKLY_COMPILED else pytest.mark.slow) for name in sorted(SETTINGS)],
)
def test_compiled_updates_learn_the_same(name):
    one_by_one, compiled = state(run(Engine(*parts(name)), 40)), state(run(CompiledEngine(*parts(name)), 40))
    assert one_by_one.keys() == compiled.keys()
    for key, value in one_by_one.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=key)
    assert torch.equal(one_by_one["noise_generator"], compiled["noise_generator"])


@NEEDS_COMPILER
@pytest.mark.parametrize("stop_after", [1, 5, 28, 31, 37])
def test_interrupted_block_continues_bit_for_bit(stop_after):
    """Blocks are of 3 updates here and the reports at 31 and 40 fall into the middle of one."""
    whole = state(run(CompiledEngine(*parts("td3_bc")), 40, reports=(31,)))
    first = CompiledEngine(*parts("td3_bc"))
    for point in (31, 40):
        first.run(point, lambda: first.algorithm.updates >= stop_after)
    assert stop_after <= first.algorithm.updates < stop_after + 3
    second = CompiledEngine(*parts("td3_bc", seed=9))
    second.algorithm.load_state_dict(first.algorithm.state_dict())
    second.sampler.load_state_dict(first.sampler.state_dict())
    second.losses.load_state_dict(first.losses.state_dict())
    again = state(run(second, 40, reports=[point for point in (31,) if point > second.algorithm.updates]))
    for key, value in whole.items():
        assert torch.equal(value, again[key]), key


@NEEDS_COMPILER
def test_batches_gathered_on_the_host_are_the_same(monkeypatch):
    """What a GPU does whose memory is too small for the dataset."""
    expected = state(run(CompiledEngine(*parts("bc")), 20))
    monkeypatch.setattr(Sampler, "_fits", lambda self, columns: False)
    algorithm, sampler = parts("bc")
    assert not sampler.on_device
    for key, value in state(run(CompiledEngine(algorithm, sampler), 20)).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)


@NEEDS_COMPILER
def test_gradients_can_be_read_at_a_report():
    engine = run(CompiledEngine(*parts("bc")), 20)
    norm = float(engine.algorithm.optimizers["actor"].gradient_norm())
    squares = sum(float(p.grad.square().sum()) for p in engine.algorithm.actor.parameters())
    assert norm == pytest.approx(squares**0.5, rel=1e-5)


@NEEDS_COMPILER
def test_compiler_that_fails(monkeypatch, tmp_path):
    """A C++ compiler that is there and does not work: `auto` learns the same without it, `on` says so in one line."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else a compiled block of an earlier run is found
    monkeypatch.setattr(engines, "UPDATES_WORTH_COMPILING", 40)
    warnings = []
    expected = state(run(Engine(*parts("td3_bc")), 40))
    with torch._inductor.config.patch({"cpp.cxx": ("false",)}):
        engine = make_engine(*parts("td3_bc"), "auto", 40, warnings.append)
        assert isinstance(engine, CompiledEngine)
        for key, value in state(run(engine, 40)).items():
            torch.testing.assert_close(value, expected[key], msg=key)
        with pytest.raises(DeviceError, match=r"compile on: .* Set training\.compile to off\.$"):
            run(make_engine(*parts("td3_bc"), "on", 40), 40)
    (warning,) = warnings
    assert warning.startswith("training.compile auto: torch's compiler fails here, so updates run uncompiled (")


def test_losses_are_means_over_the_updates_that_had_them():
    engine = Engine(*parts("td3_bc"))
    seen = []
    for _ in range(6):
        before = engine.losses.state_dict()["actor_loss"][0]
        engine.update()
        seen.append(float(engine.losses.state_dict()["actor_loss"][0] - before))
    assert np.flatnonzero(seen).tolist() == [2, 5]
    assert engine.losses.take()["actor_loss"] == pytest.approx(sum(seen) / 2)
    assert engine.losses.take()["actor_loss"] is None


def test_which_engine_runs(monkeypatch):
    algorithm, sampler = parts("bc")
    monkeypatch.setattr(engines, "missing_for_compilation", lambda cuda: None)
    kinds = [
        type(make_engine(algorithm, sampler, *case))
        for case in (("off", 10**6), ("auto", 10), ("auto", 10**6), ("on", 10))
    ]
    assert kinds == [Engine, Engine, CompiledEngine, CompiledEngine]
    assert type(make_engine(*parts("cql"), "auto", 10**6)) is Engine
    assert type(make_engine(*parts("cql"), "on", 10)) is CompiledEngine
    slow, _ = parts("td3_bc", policy_freq=9)
    assert type(make_engine(slow, sampler, "auto", 10**6)) is Engine
    with pytest.raises(DeviceError, match="repeats after 9 updates, and at most 8"):
        make_engine(slow, sampler, "on", 10)
    monkeypatch.setattr(engines, "missing_for_compilation", lambda cuda: "g++")
    assert type(make_engine(algorithm, sampler, "auto", 10**6)) is Engine
    with pytest.raises(DeviceError, match=r"compile on: g\+\+ is not here"):
        make_engine(algorithm, sampler, "on", 10)
