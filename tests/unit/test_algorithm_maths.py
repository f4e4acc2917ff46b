"""The maths of each algorithm by hand."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.conservative import conservative_gradients
from gems_ray.algorithms.cql import CQLCritic
from gems_ray.data.experience import Batch
from tests.unit.test_algorithms import assert_same, make, random_batch


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
