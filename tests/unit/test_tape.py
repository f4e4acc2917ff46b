"""What a CUDA graph needs, checked on the CPU: every update repeats without Python, and never asks the host.

A recording of torch's operations stands for the captured graph (benchmarks/tape.py).
"""

import importlib.util
from pathlib import Path

import pytest
import torch

from gems_ray.algorithms import ALGORITHMS, base, make_algorithm
from gems_ray.algorithms.conservative import conservative_gradients
from gems_ray.data.normalizer import Normalizer
from gems_ray.learning.engine import LossMeans
from gems_ray.learning.packed_update import PackedUpdate
from tests.unit.test_algorithms import assert_same
from tests.unit.test_engine import SETTINGS, parts

SPEC = importlib.util.spec_from_file_location("tape", Path(__file__).parents[2] / "benchmarks" / "tape.py")
tape = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tape)

VARIANTS = [
    *((name, {}) for name in sorted(ALGORITHMS)),
    ("iql", {"deterministic": True}),
    ("cql", {"lagrange": False, "max_target_backup": False, "automatic_entropy_tuning": False}),
    ("cql", {"importance_sampling": False, "clip_diff_min": -1.0, "clip_diff_max": 50.0, "backup_entropy": True}),
    ("decision_transformer", {"dropout": 0.0, "num_heads": 2}),
]
NAMES = [f"{name} {' '.join(settings)}".strip() for name, settings in VARIANTS]
CYCLES = 3


def everything(algorithm, losses):
    return algorithm.state_dict() | {f"losses.{key}": value for key, value in losses.state_dict().items()}


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=NAMES)
def test_every_phase_repeats_without_python(name, settings):
    """Batches are made inside, as in a captured graph: from row numbers that lie in a fixed tensor."""
    plain, sampler = parts(name, **settings)
    taped, _ = parts(name, **settings)
    size, losses, taped_losses = plain.config.batch_size, LossMeans(plain), LossMeans(taped)
    rows = torch.zeros(size, dtype=torch.int64)
    noise = {key: torch.zeros_like(value) for key, value in parts(name, **settings)[0].draw_noise(size).items()}
    tapes = []
    for update in range(CYCLES * plain.period):
        phase = update % plain.period
        drawn, drawn_noise = sampler.draw(size), plain.draw_noise(size)
        losses.add(plain.learn(sampler.rows(drawn), drawn_noise, phase))
        rows.copy_(drawn)
        for key, value in drawn_noise.items():
            noise[key].copy_(value)
        if update < plain.period:
            tapes.append(tape.Tape())
            with tapes[-1]:
                taped_losses.add(taped.learn(sampler.rows(rows), noise, phase))
            assert not tapes[-1].found
            assert tapes[-1].operations > 10
        else:
            tapes[phase].play()
    taped.generator.set_state(plain.generator.get_state())
    assert_same(everything(taped, taped_losses), everything(plain, losses))


class Imagined(tape.Forbidden):
    """Watches a device that has no values (torch's `meta`): whatever reads one, or mixes it with the host, fails."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.startswith("aten::_fused_adam"):
            return None  # it computes in place, and torch has no such kernel for this device
        return super().__torch_dispatch__(function, types, args, kwargs)


class AnyGenerator(torch.Generator):
    """The CPU's generator under the name of any device: torch has none for a device that is not there."""

    def __new__(cls, device=None):
        return super().__new__(cls)


def on_imagined_device(name, monkeypatch, **settings):
    """An algorithm, the batches of its sampler and its noise, all of them on the device."""
    monkeypatch.setattr(base.torch, "Generator", AnyGenerator)
    here, sampler = parts(name, **settings)
    algorithm = make_algorithm(name, 20, 32, SETTINGS[name] | settings, device="meta")
    noise = {key: value.to("meta") for key, value in here.draw_noise(here.config.batch_size).items()}
    sampler.device = algorithm.device
    sampler.normalizer = Normalizer(*(value.to("meta") for value in sampler.normalizer))
    sampler._columns = {key: column.to("meta") for key, column in sampler._columns.items()}
    if hasattr(sampler, "_steps"):
        sampler._steps = sampler._steps.to("meta")
    return algorithm, sampler, noise


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=NAMES)
def test_nothing_is_asked_of_the_host(name, settings, monkeypatch):
    algorithm, sampler, noise = on_imagined_device(name, monkeypatch, **settings)
    rows, losses = torch.zeros(algorithm.config.batch_size, dtype=torch.int64, device="meta"), LossMeans(algorithm)
    for phase in range(algorithm.period):
        with Imagined() as watched:
            losses.add(algorithm.learn(sampler.rows(rows), noise, phase))
        assert watched.operations > 10
        assert not watched.found


@pytest.mark.parametrize(("name", "settings"), VARIANTS, ids=NAMES)
def test_a_pack_asks_nothing_of_the_host(name, settings, monkeypatch):
    cells = [on_imagined_device(name, monkeypatch, **settings) for _ in range(2)]
    algorithms, _, noise = zip(*cells, strict=True)
    rows = torch.zeros(algorithms[0].config.batch_size, dtype=torch.int64, device="meta")
    update = PackedUpdate(algorithms)
    for phase in range(algorithms[0].period):
        with Imagined() as watched:
            update([sampler.rows(rows) for _, sampler, _ in cells], noise, phase)
        assert watched.operations > 10
        assert not watched.found


@pytest.mark.parametrize(
    ("mistake", "found"),
    [
        (lambda x: x * float(x.mean()), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x + torch.randn(4), "randn"),
        (lambda x: torch.nn.functional.dropout(x, 0.5), "bernoulli"),
        (lambda x: x * torch.tensor([1.0, 2.0, 3.0, 4.0]), "lift_fresh"),
        (lambda x: x if torch.equal(x, x) else 2 * x, "equal"),
    ],
)
def test_mistakes_are_found(mistake, found):
    with pytest.raises(RuntimeError, match=rf"cannot be captured: .*{found}"):
        tape.record(lambda: mistake(torch.ones(4)))


@pytest.mark.parametrize(
    "mistake", [lambda x: x.cpu() + 1, lambda x: x + torch.ones(4), lambda x: x.numpy(), lambda x: x.tolist()]
)
def test_copies_to_the_host_are_found_on_an_imagined_device(mistake):
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)), Imagined():
        mistake(torch.ones(4, device="meta"))


def test_numbers_of_python_are_those_of_the_recording():
    """Why a schedule must be a tensor: a captured graph repeats the number that it was given."""
    count, step, total = [1.0], torch.ones(()), torch.zeros(2)

    def update():
        total.add_(torch.stack([step.new_full((), count[0]), step]))
        step.add_(1)

    play = tape.record(update)
    count[0] = 2.0
    play()
    assert total.tolist() == [2.0, 3.0]


class OnGpu(torch.Tensor):
    """A CPU's tensor that says it is a GPU's."""

    is_cuda = True


def test_the_written_out_gradient_of_cql_on_a_gpu():
    """There it keeps every action: to leave some out would be to count them on the host."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator)

    parameters = [t for i, o in ((52, 16), (16, 16), (16, 1)) for t in (drawn(o, i) / i**0.5, drawn(o))]
    settings = drawn(8, 6), drawn(8), torch.ones(()), 0.01, None, None, 0.0  # so sharp that most actions vanish
    pairs = drawn(8, 7, 52)
    results = {}
    for kind in (torch.Tensor, OnGpu):
        with tape.Forbidden() as watched:
            given = pairs.as_subclass(kind)
            results[kind] = conservative_gradients._init_fn(parameters, given, *settings)
        assert watched.operations > 20
        assert any("nonzero" in reason for reason in watched.found) == (kind is torch.Tensor)
    for here, there in zip(*results.values(), strict=True):
        torch.testing.assert_close(here, there.as_subclass(torch.Tensor), rtol=1e-5, atol=1e-6)
