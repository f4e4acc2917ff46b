"""Ranker, belief and agent by hand; the bundle and what happens to damaged ones."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gems_ray.action_box import ActionBox
from gems_ray.errors import WorldError
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import find_world, load_world, shipped_worlds
from gems_ray.world.ranker import GemsRanker, RankerConfig, make_distinct
from gems_ray.worldmaking.collect import collect_dataset
from gems_ray.worldmaking.sac import SacConfig, SacGems, Trajectories
from gems_ray.worldmaking.world import without_duplicates

TINY = RankerConfig(num_items=30, slate_size=3, item_dim=4, latent_dim=5, encoder_sizes=(8,), decoder_sizes=(8,))


@pytest.fixture
def ranker():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GemsRanker(TINY)


def batch(rows=6):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randint(30, (rows, 3), generator=generator),
        torch.rand((rows, 3), generator=generator) < 0.3,
        torch.randn((rows, 5), generator=generator),
    )


def greedy(logits):
    """Slate of one user by the rule itself: (K, I) to (K,)."""
    slots, items = logits.shape
    pairs = sorted((-logits[slot, item], slot, item) for slot in range(slots) for item in range(items))
    slate = {}
    for _, slot, item in pairs:
        if slot not in slate and item not in slate.values():
            slate[slot] = item
    return np.array([slate[slot] for slot in range(slots)])


class TestRanker:
    def test_encoder_sees_items_slot_after_slot_then_clicks(self, ranker):
        slates, clicks, _ = batch()
        features = torch.cat([ranker.item_embeddings.weight[slates[0]].flatten(), clicks[0].float()])
        expected = ranker.inference(features)
        mu, log_variance = ranker.encode(slates, clicks)
        torch.testing.assert_close(torch.cat([mu[0], log_variance[0]]), expected)

    def test_loss_terms_by_hand(self, ranker):
        slates, clicks, _ = batch()
        loss = ranker.loss(slates, clicks)
        mu, log_variance = ranker.encode(slates, clicks)
        item_logits, click_logits = ranker.logits(mu)
        log_probability = item_logits - item_logits.exp().sum(dim=-1, keepdim=True).log()
        slate = -log_probability.gather(2, slates[:, :, None]).mean()
        chance = torch.sigmoid(click_logits)
        click = -torch.where(clicks, chance.log(), (1 - chance).log()).mean()
        kl = 0.5 * (mu**2 + log_variance.exp() - 1 - log_variance).mean()
        torch.testing.assert_close(loss.slate, slate)
        torch.testing.assert_close(loss.click, click)
        torch.testing.assert_close(loss.kl, kl)
        torch.testing.assert_close(loss.total, slate + TINY.lambda_click * click + TINY.lambda_kl * kl)

    @pytest.mark.parametrize(("scale", "exponent"), [("variance", 1.0), ("standard_deviation", 0.5)])
    def test_what_multiplies_the_noise(self, ranker, scale, exponent):
        slates, clicks, noise = batch()
        other = GemsRanker(RankerConfig(**{**{f: getattr(TINY, f) for f in TINY.__slots__}, "noise_scale": scale}))
        other.load_state_dict(ranker.state_dict())
        mu, log_variance = ranker.encode(slates, clicks)
        item_logits, _ = ranker.logits(mu + noise * (exponent * log_variance).exp())
        expected = torch.nn.functional.cross_entropy(item_logits.flatten(0, 1), slates.flatten())
        torch.testing.assert_close(other.loss(slates, clicks, noise).slate, expected)

    def test_item_table_learns_through_the_encoder_only(self, ranker):
        slates, clicks, noise = batch(2)
        slates[:] = torch.tensor([[0, 1, 2], [3, 4, 5]])
        ranker.loss(slates, clicks, noise).total.backward()
        gradient = ranker.item_embeddings.weight.grad
        assert (gradient[:6].abs().sum(dim=1) > 0).all()
        assert (gradient[6:] == 0).all()

    def test_decode_takes_the_highest_logit_of_every_slot(self, ranker):
        latents = torch.randn((500, 5), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = ranker.logits(latents)[0].argmax(dim=-1)
        np.testing.assert_array_equal(ranker.decode(latents), expected.numpy())

    def test_decode_without_duplicates_is_greedy_assignment(self, ranker):
        """Against the plain rule: of all free slots and items that are left, the highest logit wins."""
        latents = 3 * torch.randn((300, 5), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            logits = ranker.logits(latents)[0].numpy()
        expected = np.stack([greedy(user) for user in logits])
        random_numbers = torch.get_rng_state()
        distinct = ranker.without_duplicates()
        assert torch.equal(torch.get_rng_state(), random_numbers), "those of the user's program are left alone"
        slates = distinct.decode(latents)
        np.testing.assert_array_equal(slates, expected)
        assert all(len(set(slate)) == len(slate) for slate in slates.tolist())
        plain = ranker.decode(latents)
        repeated = np.array([len(set(slate)) < len(slate) for slate in plain.tolist()])
        assert 50 < repeated.sum() < 300, "both kinds are among the cases"
        np.testing.assert_array_equal(slates[~repeated], plain[~repeated])
        np.testing.assert_array_equal(distinct.decode(latents[:1]), slates[:1])

    @settings(max_examples=100, deadline=None)
    @given(arrays(np.float32, (3, 4, 5), elements=st.integers(0, 4)))
    def test_equal_logits_are_given_to_the_upper_slot_and_the_smaller_item(self, logits):
        slates = logits.argmax(axis=2)
        make_distinct(slates, logits.copy())
        np.testing.assert_array_equal(slates, [greedy(user) for user in logits])

    def test_action_box_holds_mean_and_deviation(self, ranker):
        slates, clicks, _ = batch(50)
        bounds = ranker.action_box(slates, clicks)
        with torch.no_grad():
            mu, log_variance = ranker.encode(slates, clicks)
        low = (mu - (0.5 * log_variance).exp()).numpy().min(axis=0)
        high = (mu + (0.5 * log_variance).exp()).numpy().max(axis=0)
        np.testing.assert_allclose(bounds.to_latent(-np.ones(5)), low, atol=1e-5)
        np.testing.assert_allclose(bounds.normalise(high), 1, atol=1e-5)


class TestAgent:
    def agent(self):
        bounds = ActionBox(np.full(2, 1.0, dtype=np.float32), np.full(2, 3.0, dtype=np.float32))
        with torch.random.fork_rng():
            torch.manual_seed(0)  # else the weights would depend on the tests that ran before
            return BehaviorAgent(GruBelief(30, 3, 4, 6), bounds, hidden_size=8)

    def test_log_probability_is_that_of_the_tanh_gaussian(self):
        agent = self.agent()
        beliefs = torch.randn((4, 6), generator=torch.Generator().manual_seed(0))
        noise = torch.randn((4, 2), generator=torch.Generator().manual_seed(1))
        actions, log_probability = agent.sample(beliefs, noise)
        mean, log_std = agent.policy(beliefs).chunk(2, dim=-1)
        gaussian = torch.distributions.Normal(mean, log_std.exp())
        tanh = torch.distributions.TransformedDistribution(gaussian, torch.distributions.TanhTransform())
        expected = tanh.log_prob((actions - 1) / 3).sum(dim=-1)
        torch.testing.assert_close(log_probability, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(agent.act(beliefs, noise), actions)
        assert (actions > -2).all()
        assert (actions < 4).all()

    def test_padding_does_not_count(self):
        """The same episodes, with and without padding at the end, cause the same update."""
        results = []
        for padding in (0, 3):
            with torch.random.fork_rng():
                torch.manual_seed(0)
                sac = SacGems(self.agent(), SacConfig(hidden_size=8))
            generator = torch.Generator().manual_seed(2)
            steps, pad = 4, (0, 0, 0, padding)
            slates = torch.randint(30, (2, steps, 3), generator=generator)
            clicks = torch.rand((2, steps, 3), generator=generator) < 0.3
            actions = torch.randn((2, steps, 2), generator=generator)
            rewards = torch.rand((2, steps), generator=generator)
            noise = torch.randn((2, 2, steps, 2), generator=generator)
            grow = torch.nn.functional.pad
            trajectories = Trajectories(
                grow(slates, pad),
                grow(clicks, pad),
                grow(actions, pad),
                grow(rewards, (0, padding)),
                torch.full((2,), steps),
            )
            losses = sac.update(trajectories, grow(noise[0, :, 1:], pad), grow(noise[1], pad))
            results.append([losses.critic, losses.actor, losses.alpha, sac.agent.policy[0].weight.detach()])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class TestBundle:
    def test_round_trip(self, world, world_folder):
        loaded = load_world(world_folder)
        assert loaded.fingerprint == world.fingerprint
        assert loaded.environment == world.environment
        latents = torch.randn((50, 32))
        np.testing.assert_array_equal(loaded.ranker.decode(latents), world.ranker.decode(latents))
        beliefs = torch.randn((5, 20))
        assert torch.equal(loaded.agents["medium"].act(beliefs), world.agents["medium"].act(beliefs))

    def test_files_are_plain(self, world_folder):
        assert sorted(path.name for path in world_folder.iterdir()) == ["manifest.yaml", "weights.safetensors"]

    @pytest.mark.parametrize(
        ("file", "old", "new", "message"),
        [
            ("manifest.yaml", b"diversity_penalty: 1.0", b"diversity_penalty: 2.0", "was changed"),
            ("manifest.yaml", b"schema_version: 1", b"schema_version: 9", "schema version 9"),
            ("manifest.yaml", b"num_topics: 10", b"num_topiks: 10", "not complete"),
            ("manifest.yaml", b"ranker:", b"ranker: [", "not a readable world bundle"),
        ],
    )
    def test_changed_manifest(self, world, tmp_path, file, old, new, message):
        world.save(tmp_path)
        content = (tmp_path / file).read_bytes()
        assert old in content
        (tmp_path / file).write_bytes(content.replace(old, new))
        with pytest.raises(WorldError, match=message):
            load_world(tmp_path)

    def test_changed_weights(self, world, tmp_path):
        world.save(tmp_path)
        content = bytearray((tmp_path / "weights.safetensors").read_bytes())
        content[-40] ^= 1
        (tmp_path / "weights.safetensors").write_bytes(content)
        with pytest.raises(WorldError, match="was changed"):
            load_world(tmp_path)

    def test_cut_off_weights(self, world, tmp_path):
        world.save(tmp_path)
        content = (tmp_path / "weights.safetensors").read_bytes()
        (tmp_path / "weights.safetensors").write_bytes(content[: len(content) // 2])
        with pytest.raises(WorldError, match="not a readable world bundle"):
            load_world(tmp_path)

    def test_fingerprint_covers_the_weights(self, world):
        with torch.no_grad():
            weight = world.ranker.slate_decoder.bias
            before, weight[0] = weight[0].clone(), 7.0
        other = type(world)(world.environment, world.items, world.ranker, world.bounds, world.agents, {})
        try:
            assert other.fingerprint != world.fingerprint
        finally:
            with torch.no_grad():
                weight[0] = before

    def test_without_duplicates_is_another_world(self, world, tmp_path):
        """Saved and read back it is still one; what is decoded with duplicates keeps its fingerprint."""
        assert "duplicates" not in world.ranker.config.as_data()
        other = without_duplicates(world, "made by a test")
        assert other.fingerprint != world.fingerprint
        assert other.facts["made_from"] == world.fingerprint
        other.save(tmp_path / "other")
        loaded = load_world(tmp_path / "other")
        assert not loaded.ranker.config.duplicates
        assert loaded.facts["test"].keys() == {"users", "random", "oracle", "expert", "medium"}
        dataset = collect_dataset(loaded, "random", 2, seed=0)
        assert all(len(set(slate)) == 10 for slate in dataset.slates.tolist())
        with pytest.raises(WorldError, match="no item twice in a slate already"):
            without_duplicates(loaded, "again")

    def test_unknown_worlds(self, tmp_path):
        with pytest.raises(WorldError, match="no world `diffuse_mixx`.*Did you mean"):
            find_world("diffuse_mixx")
        with pytest.raises(WorldError, match="world train --environment focused_mix"):
            find_world("focused_mix")
        with pytest.raises(WorldError, match=r"no manifest\.yaml"):
            find_world(str(tmp_path))


@pytest.mark.parametrize("name", ["diffuse_topdown", "diffuse_mix", "diffuse_divpen", "focused_topdown"])
class TestShippedWorlds:
    def test_is_complete_small_and_logged(self, name, request):
        assert name in shipped_worlds()
        world = find_world(name)
        assert world.environment.name == name
        assert {"expert", "medium"} <= set(world.agents)
        folder = request.config.rootpath / "gems_ray" / "world" / "shipped" / name
        assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
        log = (folder / "agent_log.csv").read_text().splitlines()
        assert log[0].startswith("episodes,updates,validation_return")
        assert int(log[-1].split(",")[0]) == world.facts["recipe"]["agent_training"]["episodes"]
        assert world.facts["command"].startswith("python run_tune.py world train")

    def test_expert_scores_what_the_manifest_says(self, name):
        from gems_ray.evaluation.returns import Evaluator
        from gems_ray.policies.latents import MeanAgent

        world = find_world(name)
        recorded = world.facts["test"]["expert"]["return_mean"]
        measured = Evaluator(world, "test", 1000).evaluate(MeanAgent(world.agents["expert"]))
        assert measured.return_mean >= (80 if name == "focused_topdown" else 240)
        assert measured.return_mean > world.facts["test"]["oracle"]["return_mean"]
        assert measured.return_mean == pytest.approx(recorded, abs=4 * measured.return_se)
