"""The contract of every algorithm in the registry."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms import ALGORITHMS, TransitionAlgorithm, make_algorithm
from gems_ray.algorithms.policy import load_policy
from gems_ray.data.experience import Batch, WindowBatch, Windows
from gems_ray.data.normalizer import Normalizer
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import Dataset
from gems_ray.errors import ConfigError, UnknownNameError
from tests.unit.test_data import plain_arrays

SMALL = {"hidden_sizes": [32, 32], "batch_size": 64}
SMALL_BY_NAME = {
    "decision_transformer": {
        "embedding_dim": 16,
        "num_layers": 2,
        "num_heads": 2,
        "sequence_length": 4,
        "warm_up_steps": 3,
        "batch_size": 64,
    }
}
PLAIN = Normalizer(torch.zeros(20), torch.ones(20), torch.zeros(32), torch.ones(32))


def make(name, seed=0, **settings):
    return make_algorithm(name, 20, 32, SMALL_BY_NAME.get(name, SMALL) | settings, seed=seed)


def random_batch(rows=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        torch.randn((rows, 20), generator=generator),
        torch.rand((rows, 32), generator=generator) * 2 - 1,
        torch.rand((rows, 1), generator=generator),
        torch.randn((rows, 20), generator=generator),
        (torch.rand((rows, 1), generator=generator) < 0.1).to(torch.get_default_dtype()),
    )


def random_windows(length, rows=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    steps = torch.arange(length)
    return WindowBatch(
        torch.randn((rows, length, 20), generator=generator),
        torch.rand((rows, length, 32), generator=generator) * 2 - 1,
        torch.rand((rows, length), generator=generator),
        torch.rand((rows, length), generator=generator) * 3,
        steps + torch.randint(90, (rows, 1), generator=generator),
        steps < torch.randint(1, length + 1, (rows, 1), generator=generator),
    )


def batch_for(algorithm, seed=0):
    """A random batch of the experience that an algorithm declares."""
    experience = algorithm.experience
    return random_windows(experience.length, seed=seed) if isinstance(experience, Windows) else random_batch(seed=seed)


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def tensors(algorithm):
    """Everything that an update changes."""
    moments = [t for o in algorithm.optimizers.values() for group in o._state.values() for t in group]
    return [*(p for network in algorithm.networks.values() for p in network.parameters()), *moments]


@pytest.fixture(params=sorted(ALGORITHMS))
def name(request):
    return request.param


@pytest.fixture(params=sorted(name for name in ALGORITHMS if issubclass(ALGORITHMS[name], TransitionAlgorithm)))
def transition_name(request):
    return request.param


class TestContract:
    def test_update_changes_the_policy_and_returns_the_named_losses(self, name):
        algorithm = make(name)
        batch, before = batch_for(algorithm), algorithm.state_dict()
        seen = set()
        for _ in range(4):
            metrics = algorithm.update(batch)
            assert all(value.ndim == 0 and not value.requires_grad for value in metrics.values())
            seen |= set(metrics)
        assert seen == set(algorithm.loss_names)
        assert algorithm.updates == 4
        after = algorithm.state_dict()
        for network in set(algorithm.networks) - {"log_alpha_prime"}:  # a multiplier that is off by default
            keys = [key for key in before if key.startswith(f"{network}.")]
            assert any(not torch.equal(before[key], after[key]) for key in keys), network

    def test_prediction_is_deterministic_inside_the_box_and_shaped_as_the_actions(self, name):
        algorithm = make(name)
        batch = batch_for(algorithm)
        batch = batch._replace(states=batch.states * 10)
        actions = algorithm.predict(batch)
        assert actions.shape == batch.actions.shape
        assert actions.abs().max() <= 1
        assert torch.equal(actions, algorithm.predict(batch))

    def test_policy_plays_many_users_alike_and_one_by_one(self, name):
        """What a user is shown depends on nothing but the user."""
        algorithm = make(name)
        algorithm.prepare(np.ones(8), np.arange(8) % 4 == 3, 1.0)
        policy = algorithm.policy(PLAIN)
        observations = torch.randn((7, 5, 20), generator=torch.Generator().manual_seed(1))
        together = self.played(policy, observations)
        assert together.shape == (7, 5, 32)
        assert together.abs().max() <= 1
        for user in range(5):
            alone = self.played(policy, observations[:, user : user + 1])
            torch.testing.assert_close(alone[:, 0], together[:, user], rtol=1e-4, atol=1e-6)

    @staticmethod
    def played(policy, observations):
        state, rewards, actions = policy.initial_state(observations.shape[1]), None, []
        for step, seen in enumerate(observations):
            chosen, state = policy.act(seen, state, rewards)
            rewards = np.full(len(seen), step % 3, dtype=np.float32)
            actions.append(chosen)
        return torch.stack(actions)

    def test_saved_policy_acts_the_same(self, name, tmp_path):
        algorithm = make(name)
        algorithm.update(batch_for(algorithm))
        algorithm.prepare(np.ones(8), np.arange(8) % 4 == 3, 1.0)
        normalizer = Normalizer(torch.randn(20), torch.rand(20) + 0.5, torch.randn(32), torch.rand(32) + 0.5)
        policy = algorithm.policy(normalizer)
        policy.save(tmp_path / "policy")
        assert {path.name for path in (tmp_path / "policy").iterdir()} == {"policy.yaml", "policy.safetensors"}
        loaded = load_policy(tmp_path / "policy")
        observations = torch.randn((5, 3, 20), generator=torch.Generator().manual_seed(1))
        assert torch.equal(self.played(policy, observations), self.played(loaded, observations))
        assert torch.equal(self.played(policy.copy(), observations), self.played(loaded, observations))

    @pytest.mark.parametrize("interrupted_after", [0, 1, 4, 7])
    def test_resume_is_exact(self, name, interrupted_after):
        whole, first, second = make(name), make(name), make(name, seed=5)
        for step in range(10):
            whole.update(batch_for(whole, seed=step))
        for step in range(interrupted_after):
            first.update(batch_for(first, seed=step))
        second.load_state_dict(first.state_dict())
        for step in range(interrupted_after, 10):
            second.update(batch_for(second, seed=step))
        assert_same(whole.state_dict(), second.state_dict())

    def test_one_seed_one_algorithm(self, name):
        assert_same(make(name, seed=3).state_dict(), make(name, seed=3).state_dict())
        different = make(name, seed=4).state_dict()
        assert any(not torch.equal(value, different[key]) for key, value in make(name, seed=3).state_dict().items())

    def test_construction_leaves_the_global_generator_alone(self, name):
        before = torch.get_rng_state()
        make(name)
        assert torch.equal(before, torch.get_rng_state())

    def test_read_only_dataset_gives_the_same_result(self, name):
        algorithms = make(name), make(name)
        for algorithm, writable in zip(algorithms, (True, False), strict=True):
            arrays = plain_arrays(200)
            for array in arrays.values():
                array.flags.writeable = writable
            sampler = make_sampler(
                algorithm.experience,
                Dataset(**arrays),
                algorithm.select_rows(arrays["rewards"], arrays["terminals"]),
                seed=0,
                device="cpu",
                normalize_states=True,
                reward_scale="none",
                bootstrap_time_limit=False,
            )
            for _ in range(4):
                algorithm.update(sampler.sample(64))
        assert_same(*(algorithm.state_dict() for algorithm in algorithms))

    def test_state_is_loaded_in_place(self, name):
        """Captured graphs and compiled code hold on to the tensors that they were made with."""
        algorithm, other = make(name), make(name, seed=1)
        other.update(batch_for(other))
        places = [tensor.data_ptr() for tensor in tensors(algorithm)]
        algorithm.load_state_dict(other.state_dict())
        algorithm.update(batch_for(algorithm))
        assert [tensor.data_ptr() for tensor in tensors(algorithm)] == places

    def test_diagnostics_are_the_named_ones(self, name):
        algorithm = make(name)
        found = algorithm.diagnose(batch_for(algorithm))
        assert set(found) == set(algorithm.diagnostic_names)
        assert all(value.ndim == 0 for value in found.values())

    def test_learning_draws_nothing_by_itself(self, name):
        """The same batch and noise, whatever the generators' state: what a captured graph relies on."""
        first, second = make(name), make(name)
        noise = first.draw_noise(64)
        second.generator.manual_seed(99)
        torch.manual_seed(99)
        for algorithm in (first, second):
            algorithm.update(batch_for(algorithm), noise)
        states = [{k: v for k, v in a.state_dict().items() if k != "noise_generator"} for a in (first, second)]
        assert_same(*states)

    def test_everything_lies_on_the_algorithms_device(self, name, monkeypatch):
        """Stands in for a GPU: operations on tensors of two devices fail on the meta device as they do there."""
        small = make(name)
        batch, noise = batch_for(small), small.draw_noise(64)
        batch = type(batch)(*(value.to("meta") for value in batch))
        cpu_generator = torch.Generator()  # there is none for meta
        monkeypatch.setattr(torch, "Generator", lambda device: cpu_generator)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the fused Adam knows no meta tensors
        algorithm = make_algorithm(name, 20, 32, SMALL_BY_NAME.get(name, SMALL), device="meta")
        for phase in range(algorithm.period):
            losses = algorithm.learn(batch, {key: value.to("meta") for key, value in noise.items()}, phase)
        found = [*losses.values(), algorithm.predict(batch), *algorithm.diagnose(batch).values()]
        assert {tensor.device.type for tensor in found + tensors(algorithm)} == {"meta"}

    def test_networks_made_double_and_batches_of_any_type(self, name):
        """As recorded updates are replayed; a row of another type is the same row."""
        algorithm, plain, noise = make(name), make(name), make(name).draw_noise(64)
        for network in algorithm.networks.values():
            network.double()
        batch = batch_for(algorithm)
        if isinstance(batch, Batch):
            batch = batch._replace(dones=(torch.arange(64) % 7 == 0)[:, None])
        for _ in range(3):
            arrays, doubles = ([convert(column) for column in batch] for convert in (torch.Tensor.numpy, as_double))
            algorithm.update(type(batch)(*arrays), {k: v.double() for k, v in noise.items()})
            plain.update(type(batch)(*doubles), noise)
        for key, value in algorithm.state_dict().items():
            if value.is_floating_point():
                torch.testing.assert_close(value.float(), plain.state_dict()[key], rtol=1e-3, atol=1e-5, msg=key)
        assert {t.dtype for n in algorithm.networks.values() for t in n.parameters()} == {torch.float64}

    def test_noise_of_an_unknown_name_is_refused(self, name):
        algorithm = make(name)
        with pytest.raises(ConfigError, match=f"{name}: noise `target_epsilon` is not known"):
            algorithm.update(batch_for(algorithm), {"target_epsilon": torch.zeros(64, 32)})

    def test_toy_problem_with_a_known_answer(self, name):
        """One step, logged around the best action: cloning and reinforcement learning agree on the answer."""
        rates = [field for field in ALGORITHMS[name].Config.model_fields if field.endswith("learning_rate")]
        size = {"sequence_length": 1} if name == "decision_transformer" else {"hidden_sizes": [64, 64]}
        algorithm = make(name, **size, **dict.fromkeys(rates, 3e-3))
        best = torch.linspace(-0.6, 0.6, 32)
        generator = torch.Generator().manual_seed(0)
        for _ in range(1000):
            states = torch.randn((64, 20), generator=generator)
            actions = (best + 0.3 * torch.randn((64, 32), generator=generator)).clamp(-1, 1)
            rewards = -10 * (actions - best).square().mean(dim=1, keepdim=True)
            if isinstance(algorithm.experience, Windows):
                first, real = torch.zeros((64, 1), dtype=torch.int64), torch.ones((64, 1), dtype=torch.bool)
                batch = WindowBatch(states[:, None], actions[:, None], rewards, rewards, first, real)
            else:
                batch = Batch(states, actions, rewards, states, torch.ones((64, 1)))
            algorithm.update(batch)
        algorithm.prepare(np.zeros(1), np.ones(1, dtype=bool), 1.0)  # the best action returns 0
        policy = algorithm.policy(PLAIN)
        played, _ = policy.act(torch.randn((200, 20), generator=generator), policy.initial_state(200), None)
        assert (played - best).square().mean() < 0.05  # the action 0 is at 0.12

    def test_settings_are_strict(self, name):
        with pytest.raises(ConfigError, match="Did you mean `batch_size`"):
            make(name, batch_sise=3)
        with pytest.raises(ConfigError, match="batch_size"):
            make(name, batch_size=0)


class TestTransitionContract:
    def test_act_takes_tensors_and_arrays(self, transition_name):
        algorithm = make(transition_name)
        states = torch.randn((100, 20)) * 10
        actions = algorithm.act(states)
        assert actions.shape == (100, 32)
        assert actions.abs().max() <= 1
        assert torch.equal(actions, algorithm.act(states))
        array = algorithm.act(states.numpy())
        assert isinstance(array, np.ndarray)
        np.testing.assert_array_equal(array, actions.numpy())

    def test_reward_and_done_columns_may_be_flat(self, transition_name):
        column, flat = make(transition_name), make(transition_name)
        batch = random_batch()
        for _ in range(2):
            column.update(batch)
            flat.update(batch._replace(rewards=batch.rewards.flatten(), dones=batch.dones.flatten()))
        assert_same(column.state_dict(), flat.state_dict())

    def test_values_have_one_entry_per_row(self, transition_name):
        algorithm, batch = make(transition_name), random_batch()
        values, following = algorithm.q_values(batch.states, batch.actions), algorithm.next_values(batch.next_states)
        assert (values is None) == (following is None)
        assert values is None or values.shape == following.shape == (64,)


def as_double(column):
    return column.double() if column.is_floating_point() else column


def test_unknown_algorithm():
    with pytest.raises(UnknownNameError, match="Did you mean `td3_bc`"):
        make_algorithm("td3-bc", 20, 32)
