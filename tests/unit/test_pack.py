"""Packs of trainers: the reports, states and policies of trainers that are trained alone."""

import pytest
import torch

import gems_ray
from gems_ray import metrics
from gems_ray.algorithms.bc import BC
from gems_ray.errors import ConfigError, TrainingError
from gems_ray.learning.pack import Pack
from tests.unit.test_trainer import trainer

CLOCK = (metrics.SECONDS, metrics.UPDATES_PER_SECOND)
TOLERANCE = {"rtol": 1e-3, "atol": 1e-4}  # float32, in which a sum in another order shows


def trainers(dataset, seeds, name="td3_bc", **options):
    return [trainer(dataset, name, seed=seed, settings={"alpha": 1.0 + seed}, **options) for seed in seeds]


def timeless(report):
    return {key: value for key, value in report.items() if key not in CLOCK}


def assert_same_report(first, second):
    assert timeless(first) == pytest.approx(timeless(second), rel=1e-3, abs=1e-4, nan_ok=True)


def assert_same_state(first, second):
    (tensors, facts), (others, their_facts) = first.state_dict(), second.state_dict()
    assert tensors.keys() == others.keys()
    for key, value in tensors.items():
        torch.testing.assert_close(others[key], value, msg=lambda text, key=key: f"{key}: {text}", **TOLERANCE)
    for key in ("updates", "reported", "best_updates"):
        assert facts[key] == their_facts[key]


def test_reports_and_states_are_those_of_trainers_alone(dataset, world):
    alone = trainers(dataset, range(3), world=world)
    packed = trainers(dataset, range(3), world=world)
    expected = [list(single) for single in alone]
    found = list(gems_ray.Pack(packed))
    assert [report["updates"] for report in expected[0]] == [reports[0]["updates"] for reports in found]
    for i, of_cell in enumerate(expected):
        for single, reports in zip(of_cell, found, strict=True):
            assert_same_report(single, reports[i])
        assert_same_state(alone[i], packed[i])
        assert packed[i].seconds > 0
        assert (alone[i].engine.name, packed[i].engine.name) == ("eager", "pack")
    assert len({report[metrics.Q_POLICY] for report in found[-1]}) == 3


def test_from_a_pack_to_alone_and_into_another_pack(dataset):
    """Interrupted between two reports each time; what is saved is what a trainer alone saves."""
    alone = trainers(dataset, range(3))
    for single in alone:
        list(single)
    first = trainers(dataset, range(3))
    pack = Pack(first)
    while first[0].reported < 30:
        pack.advance()
    assert pack.advance(stop=lambda: first[0].updates >= 37) == [None] * 3

    second = trainers(dataset, range(3))
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(*old.state_dict())
    for single in second:  # alone
        assert single.advance(stop=lambda single=single: single.updates >= 43) is None
        assert single.updates == 43

    third = [trainer(dataset, "td3_bc", seed=seed, settings={"alpha": 1.0 + seed}) for seed in range(3)]
    for old, new in zip(second, third, strict=True):
        new.load_state_dict(*old.state_dict())
    for _ in Pack(third[1:]):  # in another pack
        pass
    list(third[0])
    for single, other in zip(alone, third, strict=True):
        assert_same_state(single, other)


def test_whoever_leaves_goes_on_alone_and_the_pack_without_it(dataset):
    alone, packed = trainers(dataset, range(3)), trainers(dataset, range(3))
    pack = Pack(packed)
    pack.advance()
    with pytest.raises(ConfigError, match="in a pack. Advance the pack"):
        packed[1].advance()
    pack.advance()
    pack.leave(packed[1])
    list(packed[1])
    list(pack)
    for single, other in zip(alone, packed, strict=True):
        list(single)
        assert_same_state(single, other)


def test_a_cell_that_fails_does_not_stop_the_others(dataset):
    alone, packed = trainers(dataset, range(3)), trainers(dataset, range(3))
    pack = Pack(packed)
    pack.advance()
    with torch.no_grad():
        packed[1].algorithm.actor.net[0].weight.fill_(torch.nan)
    reports = []
    with pytest.raises(TrainingError, match="after 30 updates a loss is not finite"):
        reports.extend(iter(pack))
    assert pack.trainers == [packed[0], packed[2]]
    assert packed[0].reported == 30
    assert [report["updates"] for report in reports[-1]] == [30, 30], "those of the others come first"
    list(pack)
    for i in (0, 2):
        list(alone[i])
        assert_same_state(alone[i], packed[i])


def test_what_differs_too_much_is_refused(dataset, monkeypatch):
    def pack(*others):
        Pack([trainer(dataset, "td3_bc"), *others])

    with pytest.raises(ConfigError, match="expected at least one trainer"):
        Pack([])
    with pytest.raises(ConfigError, match="one algorithm, found td3_bc and bc"):
        pack(trainer(dataset, "bc"))
    with pytest.raises(ConfigError, match="same `batch_size` in all cells, found 64 and 32. Only alpha, tau"):
        pack(trainer(dataset, "td3_bc", settings={"batch_size": 32}))
    with pytest.raises(ConfigError, match="the same matmul_precision"):
        precise = trainer(dataset, "td3_bc")
        precise.matmul_precision = "high"
        pack(precise)
    with pytest.raises(ConfigError, match="the same evaluations"):
        pack(trainer(dataset, "td3_bc", evaluation_interval=40))
    other = trainer(dataset, "td3_bc")
    other.advance()
    other.advance()
    with pytest.raises(ConfigError, match="number of updates in all cells, found 0 and 30"):
        pack(other)
    monkeypatch.setattr(BC, "per_cell", None)
    with pytest.raises(ConfigError, match="bc cannot be packed"):
        Pack([trainer(dataset, "bc"), trainer(dataset, "bc", seed=1)])
