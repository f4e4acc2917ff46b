"""The trainer as a library offers it: a loop over reports, a policy that stays, an honest end."""

import numpy as np
import pytest
import torch

from gems_ray import metrics
from gems_ray.algorithms import ALGORITHMS
from gems_ray.algorithms.bc import BC
from gems_ray.data.normalizer import Normalizer
from gems_ray.data.schema import Dataset
from gems_ray.errors import ConfigError, DatasetError, TrainingError, WorldError
from gems_ray.evaluation.offline import OfflineEvaluator
from gems_ray.evaluation.returns import Evaluator
from gems_ray.learning.diagnostics import Diagnostics
from gems_ray.learning.trainer import Trainer
from tests.conftest import make_world
from tests.unit.test_algorithms import SMALL, SMALL_BY_NAME
from tests.unit.test_data import plain_arrays


def trainer(dataset, name="bc", **options):
    small = SMALL_BY_NAME.get(name, SMALL) | options.pop("settings", {})
    options = {"max_timesteps": 60, "evaluation_interval": 30, "validation_users": 4} | options
    return Trainer(dataset, name, small, **options)


@pytest.mark.parametrize("name", ["bc", "iql", "decision_transformer"])
def test_reports_in_a_loop(dataset, world, name):
    reports = list(trainer(dataset, name, world=world))
    assert [report["updates"] for report in reports] == [0, 30, 50, 60]
    assert all(np.isfinite(report["eval/return_mean"]) for report in reports)
    assert all(np.isfinite(value) for report in reports[1:] for value in report.values())
    best = [report["eval/best_return_mean"] for report in reports]
    assert best == [max(report["eval/return_mean"] for report in reports[: n + 1]) for n in range(4)]


def test_one_seed_one_training(dataset):
    first, second = (list(trainer(dataset, seed=3))[-1] for _ in range(2))
    timed = {metrics.SECONDS, metrics.UPDATES_PER_SECOND}
    assert {k: v for k, v in first.items() if k not in timed} == {k: v for k, v in second.items() if k not in timed}


def test_policy_stays_as_it_was_when_training_goes_on(dataset, world):
    training = trainer(dataset, max_timesteps=60)
    training.advance()
    early = training.policy()
    before = Evaluator(world, "test", 5).evaluate(early)
    list(training)
    assert Evaluator(world, "test", 5).evaluate(early) == before
    assert Evaluator(world, "test", 5).evaluate(training.policy()) != before
    assert Evaluator(world, "test", 5).evaluate(training.policy()) == Evaluator(world, "test", 5).evaluate(
        training.live_policy
    )


def test_mistakes_are_named_before_the_training(dataset, world):
    with pytest.raises(ConfigError, match="Did you mean `batch_size`"):
        trainer(dataset, settings={"batch_sise": 3})
    with pytest.raises(ConfigError, match="max_timesteps"):
        trainer(dataset, max_timesteps=0)
    with pytest.raises(WorldError, match="collected in world"):
        trainer(dataset, world=make_world(seed=1))
    with pytest.raises(DatasetError, match="no metadata"):
        trainer(Dataset(**plain_arrays(20)), world=world)


class TestContinuation:
    @pytest.mark.parametrize("stop_after", [0, 7, 30, 45])
    def test_windows_are_drawn_on_to_the_bit(self, dataset, stop_after):
        whole, part, again = (trainer(dataset, "decision_transformer", seed=s) for s in (1, 1, 2))
        list(whole)
        while part.updates < stop_after:
            part.advance(stop=lambda: part.updates >= stop_after)
        again.load_state_dict(*part.state_dict())
        list(again)
        ours, theirs = whole.state_dict()[0], again.state_dict()[0]
        for key in ours:
            assert torch.equal(ours[key], theirs[key]), key


class TestDivergence:
    """Critics whose values lie far above what the rewards pay, and then lose all sense."""

    @pytest.fixture
    def diverged(self, dataset):
        settings = {"learning_rate": 1e-9}
        training = trainer(dataset, "td3_bc", settings=settings, max_timesteps=120, evaluation_interval=10)
        for name in ("critic_1", "critic_2"):
            last = training.algorithm.networks[name].net[-1]
            torch.nn.init.constant_(last.bias, 1e4)
        while not training.diverged:
            training.advance()
        return training

    @staticmethod
    def spoil(training):
        torch.nn.init.constant_(training.algorithm.networks["critic_1"].net[0].weight, torch.nan)

    def test_the_last_finite_report_stands_for_the_training(self, diverged):
        finite, reported = diverged.last_report, diverged.reported
        weights = diverged.live_policy.tensors()
        self.spoil(diverged)
        assert diverged.advance() is None
        assert diverged.finished
        assert "not finite" in diverged.broken_off
        assert diverged.last_report == finite and diverged.reported == reported
        for key, value in diverged.live_policy.tensors().items():
            assert torch.equal(value, weights[key]), key
        assert list(diverged) == []

    def test_an_interruption_before_it_changes_nothing(self, diverged, dataset):
        settings = {"learning_rate": 1e-9}
        again = trainer(dataset, "td3_bc", settings=settings, max_timesteps=120, evaluation_interval=10)
        again.load_state_dict(*diverged.state_dict())
        for training in (diverged, again):
            self.spoil(training)
            training.advance()
        for key, value in diverged.live_policy.tensors().items():
            assert torch.equal(value, again.live_policy.tensors()[key]), key

    def test_values_that_had_not_diverged_are_a_failure(self, dataset):
        training = trainer(dataset, "td3_bc")
        training.advance()
        self.spoil(training)
        with pytest.raises(TrainingError, match="not finite"):
            training.advance()


def test_diagnostics_of_an_algorithm_without_a_critic(dataset):
    """What an algorithm has to tell does not depend on whether it has a critic."""

    class Telling(BC):
        name = "telling"
        diagnostic_names = ("largest_action",)

        def diagnose(self, batch):
            return {"largest_action": self.actions(batch.states).abs().max()}

    ALGORITHMS.register(Telling)
    training = trainer(dataset, "telling")
    report = training.advance()
    assert 0 < report["train/largest_action"] <= 1
    assert metrics.Q_POLICY not in report
    assert isinstance(training._diagnostics, Diagnostics)


def test_timeouts_end_episodes_and_let_values_go_on():
    """D4RL's convention: an episode ends at either flag, and a value ends at `terminals` alone."""
    arrays = plain_arrays(30) | {"terminals": np.arange(30) == 29, "timeouts": np.arange(30) % 10 == 9}
    arrays["rewards"] = np.ones(30, dtype=np.float32)
    dataset = Dataset(**arrays)
    training = trainer(dataset, "td3_bc", settings={"discount": 0.5})
    assert training.sampler.rows(torch.arange(30)).dones.flatten().nonzero().flatten().tolist() == [29]
    assert training.advance()[metrics.Q_BOUND] == 2  # 1 + 0.5 + ... for ever, beyond the 10 steps of an episode
    cut = trainer(Dataset(**(arrays | {"timeouts": None, "terminals": arrays["timeouts"]})), "td3_bc")
    assert cut.advance()[metrics.Q_BOUND] == pytest.approx(sum(0.99**t for t in range(10)))
    best = trainer(dataset, "bc_best", settings={"best_fraction": 0.34})
    assert len(set(best.sampler.draw(1000).tolist())) == 10


def test_offline_estimate_of_a_policy_with_a_memory(dataset):
    """Logged episodes are replayed: the policy remembers what was played in them, not what it would have played."""
    training = trainer(dataset, "decision_transformer")
    list(training)
    policy, normalizer = training.policy(), training.sampler.normalizer
    rows = np.arange(200, 500)
    evaluator = OfflineEvaluator(dataset.arrays, rows, normalizer)
    chosen, following = evaluator._replay(policy)
    start = 300  # the second of the three episodes, one user alone
    state, rewards = policy.initial_state(1), None
    for step in range(100):
        row = slice(start + step, start + step + 1)
        latents, state = policy.act(dataset.observations[row], state, rewards)
        expected = normalizer.actions(latents)
        torch.testing.assert_close(chosen[100 + step], expected[0], rtol=1e-4, atol=1e-5)
        if step:
            torch.testing.assert_close(following[99 + step], expected[0], rtol=1e-4, atol=1e-5)
        state = policy.replace_actions(state, torch.from_numpy(dataset.actions[row]))
        rewards = dataset.rewards[row]
    assert np.isfinite(evaluator(policy).fqe_value)
    plain = Normalizer(*normalizer)
    assert evaluator(policy) == OfflineEvaluator(dataset.arrays, rows, plain)(policy)
