"""The contract of every algorithm in the registry, and the maths of each by hand."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms import ALGORITHMS, TransitionAlgorithm, make_algorithm
from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.conservative import conservative_gradients
from gems_ray.algorithms.cql import CQLCritic
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


class TestTD3BC:
    def test_critic_target_by_hand(self):
        """With zeroed target networks the target is the reward alone, and the loss twice the mean squared error."""
        algorithm = make("td3_bc")
        state = algorithm.state_dict()
        for key in state:
            if key.startswith(("critic_1_target", "critic_2_target", "critic_1.", "critic_2.")):
                state[key].zero_()
        algorithm.load_state_dict(state)
        batch = random_batch()
        loss = algorithm.update(batch)["critic_loss"]
        assert float(loss) == pytest.approx(2 * float(batch.rewards.square().mean()), rel=1e-5)

    def test_done_cuts_the_next_value(self):
        algorithm = make("td3_bc", discount=0.5)
        state = algorithm.state_dict()
        for key in state:
            if key.startswith(("critic_1", "critic_2")):
                state[key].zero_()
            if key in ("critic_1_target.net.4.bias", "critic_2_target.net.4.bias"):
                state[key].fill_(4.0)
        algorithm.load_state_dict(state)
        batch = random_batch()._replace(rewards=torch.ones((64, 1)), dones=(torch.arange(64) < 32).float()[:, None])
        # Half of the targets are 1, half are 1 + 0.5 * 4 = 3; the critics say 0.
        assert float(algorithm.update(batch)["critic_loss"]) == pytest.approx(2 * (1 + 9) / 2, rel=1e-5)

    def test_targets_move_with_the_actor_only(self):
        algorithm, batch = make("td3_bc", policy_freq=3), random_batch()
        for update in range(1, 7):
            before = algorithm.state_dict()
            algorithm.update(batch)
            after = algorithm.state_dict()
            moved = [key for key in before if "_target." in key and not torch.equal(before[key], after[key])]
            assert len(moved) == (18 if update % 3 == 0 else 0)
            assert torch.equal(before["actor.net.0.weight"], after["actor.net.0.weight"]) == (update % 3 != 0)

    def test_polyak_step(self):
        algorithm, batch = make("td3_bc", policy_freq=1, tau=0.25), random_batch()
        before = algorithm.state_dict()
        algorithm.update(batch)
        after = algorithm.state_dict()
        expected = 0.75 * before["critic_2_target.net.2.weight"] + 0.25 * after["critic_2.net.2.weight"]
        torch.testing.assert_close(after["critic_2_target.net.2.weight"], expected)

    def test_given_noise_replaces_drawn_noise(self):
        batch, eps = random_batch(), {"target_eps": torch.zeros((64, 32))}
        quiet, silent = make("td3_bc"), make("td3_bc", policy_noise=0.0)
        quiet.update(batch, eps)
        silent.update(batch)
        assert torch.equal(quiet.state_dict()["critic_1.net.0.weight"], silent.state_dict()["critic_1.net.0.weight"])

    def test_larger_alpha_means_more_reinforcement_learning(self):
        """The reward opposes the data, so the cloning error must grow with alpha; alpha 0 is pure cloning."""
        errors = [self.cloning_error(alpha) for alpha in (0.0, 1.0, 2.5, 10.0)]
        assert errors == sorted(errors)
        assert errors[0] < 0.2 < 0.8 < errors[-1]

    @staticmethod
    def cloning_error(alpha):
        algorithm = make_algorithm(
            "td3_bc", 20, 32, {"alpha": alpha, "hidden_sizes": [64, 64], "learning_rate": 1e-3, "discount": 0.0}
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(600):
            states = torch.randn((256, 20), generator=generator)
            actions = (0.5 + 0.35 * torch.randn((256, 32), generator=generator)).clamp(-1, 1)
            rewards = -actions.mean(dim=1, keepdim=True) * 10
            algorithm.update(Batch(states, actions, rewards, states, torch.ones((256, 1))))
        states = torch.randn((512, 20), generator=generator)
        actions = (0.5 + 0.35 * torch.randn((512, 32), generator=generator)).clamp(-1, 1)
        return float((algorithm.act(states) - actions).square().mean())


class TestIQL:
    def test_rate_of_the_actor_falls_by_a_cosine_to_zero(self):
        algorithm, batch = make("iql", max_timesteps=4), random_batch()
        moved = []
        for _ in range(6):
            before = algorithm.state_dict()["actor.net.net.2.weight"]
            algorithm.update(batch)
            moved.append(float((algorithm.state_dict()["actor.net.net.2.weight"] - before).abs().max()))
        # Adam's first step is as large as the rate: (1 + cos 0) / 2 = 1; after 4 updates the rate stays 0.
        assert moved[0] == pytest.approx(3e-4, rel=0.01)
        assert moved[0] > moved[2] > moved[3] > 0
        assert moved[4] == moved[5] == 0

    def test_rate_on_a_gpu_is_of_the_type_that_its_fused_kernel_reads(self):
        parameter = torch.nn.Parameter(torch.zeros(1, device="meta"))
        assert Adam([parameter], 1e-3, cosine_steps=10)._rate().dtype == torch.float32

    def test_advantage_statistics_by_hand(self):
        algorithm = make("iql", beta=1.0, largest_weight=100.0)
        state = algorithm.state_dict()
        for key in state:
            if key.startswith(("qf", "q_target", "vf")):
                state[key].zero_()
            if key in ("q_target.q1.net.4.bias", "q_target.q2.net.4.bias"):
                state[key].fill_(5.0)
        algorithm.load_state_dict(state)
        found = {name: value.item() for name, value in algorithm.diagnose(random_batch()).items()}
        assert found == {"advantage_q90": 5.0, "advantage_near_zero": 0.0, "weight_clipped": 1.0}  # exp(5) > 100


class TestBestBC:
    def test_clones_the_best_trajectories_only(self):
        rewards = np.array([0, 0, 5, 5, 1, 1, 9], dtype=np.float32)
        terminals = np.array([0, 1, 0, 1, 0, 1, 0], dtype=bool)  # the last step belongs to an open episode
        assert make("bc_best", best_fraction=0.4).select_rows(rewards, terminals).tolist() == [2, 3]
        assert make("bc_best", best_fraction=0.7).select_rows(rewards, terminals).tolist() == [2, 3, 4, 5]
        assert make("bc", discount=0.9).select_rows(rewards, terminals) is None


class TestCQL:
    @pytest.mark.parametrize("importance", [True, False])
    @pytest.mark.parametrize(("low", "high"), [(None, None), (-0.3, 0.2), (0.0, None)])
    @pytest.mark.parametrize(("rows", "sharpness"), [(1, 1.0), (70, 1.0), (70, 100.0)])
    def test_written_out_gradient_is_that_of_the_loss(self, importance, low, high, rows, sharpness):
        """The loss of the docstring through autograd.

        Where densities differ by orders of magnitude, most of the actions are left out of the backward pass.
        """
        generator = torch.Generator().manual_seed(0)
        critic = CQLCritic(20, 32, (16, 16, 16)).double()
        for parameter in critic.parameters():
            parameter.data.normal_(std=0.3, generator=generator)
        states = torch.randn((rows, 20), generator=generator, dtype=torch.float64)
        actions = torch.randn((rows, 31, 32), generator=generator, dtype=torch.float64)
        density = sharpness * torch.randn((rows, 30), generator=generator, dtype=torch.float64)
        density = density if importance else None
        target = torch.randn(rows, generator=generator, dtype=torch.float64)
        weight, temperature = torch.tensor(3.0, dtype=torch.float64), 1.7

        values = critic(states[:, None].expand(-1, 31, -1), actions)
        predicted = values[:, -1]
        scores = values if density is None else values[:, :-1] - density
        gap = temperature * torch.logsumexp(scores / temperature, dim=1) - predicted
        gap = gap if low is None and high is None else gap.clamp(low, high)
        loss = (predicted - target).square().mean() + weight * (gap.mean() - 0.5)
        expected = [loss.detach(), gap.mean().detach(), *torch.autograd.grad(loss, list(critic.parameters()))]

        parameters = [parameter.detach() for parameter in critic.parameters()]
        pairs = torch.cat([states[:, None].expand(-1, 31, -1), actions], dim=2)
        found = conservative_gradients(parameters, pairs, density, target, weight, temperature, low, high, 0.5)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)

    @pytest.mark.parametrize("tuned", [True, False])
    def test_multiplied_entropy_temperature_by_hand(self, tuned):
        """alpha = 0.3 exp(log alpha), and 0.3 where it is fixed, in the losses of the actor and of the critics."""
        settings = {"automatic_entropy_tuning": tuned, "alpha_multiplier": 0.3, "actor_learning_rate": 0.01}
        algorithm = make("cql", alpha=0.0, backup_entropy=True, **settings)
        for network in algorithm.networks.values():
            network.double()
        critics = algorithm.critic_1, algorithm.critic_2
        for step in range(3):
            batch, noise = random_batch(seed=step), algorithm.draw_noise(64)
            states, actions, rewards, next_states, dones = (column.double() for column in batch)
            log_alpha = algorithm.log_alpha().item()
            temperature = 0.3 * np.exp(log_alpha) if tuned else 0.3
            with torch.no_grad():
                chosen, log_pi = self.sample(algorithm, states, noise["pi_eps"])
                following, next_log_pi = self.sample(algorithm, next_states, noise["next_eps"])
                q = torch.minimum(*(critic(states, chosen) for critic in critics))
                targets = algorithm.critic_1_target, algorithm.critic_2_target
                next_q = torch.minimum(*(target(next_states, following) for target in targets))
                y = rewards[:, 0] + 0.99 * (1 - dones[:, 0]) * (next_q - temperature * next_log_pi)
                errors = [((critic(states, actions) - y) ** 2).mean().item() for critic in critics]
            losses = {name: value.item() for name, value in algorithm.update(batch, noise).items()}
            assert losses["alpha_entropy"] == pytest.approx(temperature, rel=1e-12)
            assert losses["actor_loss"] == pytest.approx((temperature * log_pi - q).mean().item(), rel=1e-10)
            assert losses["critic_loss"] == pytest.approx(sum(errors), rel=1e-10)
            if step == 0:  # Adam's first step is as long as its rate; entropy above its target lowers the temperature
                downhill = np.sign(log_pi.mean().item() - 32)
                assert algorithm.log_alpha().item() == pytest.approx(0.01 * downhill if tuned else 0, rel=1e-6)
        assert (algorithm.log_alpha().item() == 0) == (not tuned)

    @staticmethod
    def sample(algorithm, states, eps):
        """Actions and log-densities by torch's own change of variables."""
        mean, log_std = algorithm.actor.gaussian(states)
        normal, tanh = torch.distributions.Normal(mean, log_std.exp()), torch.distributions.TanhTransform(cache_size=1)
        before = mean + log_std.exp() * eps
        return tanh(before), torch.distributions.TransformedDistribution(normal, tanh).log_prob(tanh(before)).sum(1)

    def test_fixed_entropy_temperature_resumes_exactly(self):
        settings = {"automatic_entropy_tuning": False, "alpha_multiplier": 0.2}
        whole, first, second = make("cql", **settings), make("cql", **settings), make("cql", seed=5, **settings)
        for step in range(6):
            whole.update(random_batch(seed=step))
        for step in range(3):
            first.update(random_batch(seed=step))
        second.load_state_dict(first.state_dict())
        for step in range(3, 6):
            losses = second.update(random_batch(seed=step))
        assert losses["alpha_entropy"].item() == pytest.approx(0.2)
        assert_same(whole.state_dict(), second.state_dict())

    def test_first_weights_are_those_of_corl(self):
        """Critics: orthogonal, and a last layer of norm 0.01. Actor: torch's own hidden layers and a small last one."""
        algorithm = make("cql", hidden_sizes=[64, 64])
        for critic in (algorithm.critic_1, algorithm.critic_2):
            first, second, last = (critic.network[layer].weight for layer in (0, 2, 4))
            torch.testing.assert_close(first.T @ first, 2 * torch.eye(52), rtol=0, atol=1e-5)
            torch.testing.assert_close(second.T @ second, 2 * torch.eye(64), rtol=0, atol=1e-5)
            assert last.norm().item() == pytest.approx(0.01, rel=1e-5)
            assert all(critic.network[layer].bias.abs().max() == 0 for layer in (0, 2, 4))
        first, last = algorithm.actor.base_network[0], algorithm.actor.base_network[4]
        assert first.weight.std().item() == pytest.approx(1 / (3 * 20) ** 0.5, rel=0.05)
        assert first.bias.abs().max() > 0
        assert last.weight.abs().max().item() == pytest.approx(0.01 * (6 / (64 + 64)) ** 0.5, rel=0.01)
        assert last.bias.abs().max() == 0

    def test_larger_alpha_pushes_unseen_actions_further_down(self):
        """The gap between logged and uniform actions grows with the weight of the conservative term."""
        gaps = []
        for alpha in (0.0, 1.0, 10.0):
            algorithm = make("cql", alpha=alpha, num_actions=4, critic_learning_rate=1e-3)
            for seed in range(60):
                algorithm.update(random_batch(seed=seed)._replace(actions=torch.full((64, 32), 0.5)))
            batch = random_batch(seed=99)
            logged = algorithm.q_values(batch.states, torch.full((64, 32), 0.5))
            gaps.append((logged - algorithm.q_values(batch.states, batch.actions)).mean().item())
        assert gaps == sorted(gaps)
        assert gaps[2] > gaps[0] + 1
