"""Policies that are not learned here: what they play, and that they come back from their files."""

import numpy as np
import pytest
import torch

from gems_ray.algorithms.policy import load_policy
from gems_ray.envs.rollout import play
from gems_ray.errors import PolicyError, UnknownNameError
from gems_ray.policies.latents import MeanAgent, RandomLatents, SampledAgent
from gems_ray.policies.slates import SlatePolicy
from gems_ray.simulator import TopicRec
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import World, load_world
from tests.policies import Constant


def policies(world):
    agent = world.agents["expert"]
    return {
        "random latents": RandomLatents(world.bounds),
        "mean agent": MeanAgent(agent),
        "sampled agent": SampledAgent(agent),
        "random slates": SlatePolicy("random", world.environment),
        "oracle": SlatePolicy("oracle", world.environment),
        "somebody else's": Constant(torch.linspace(-1, 1, 32)),
    }


NAMES = ("random latents", "mean agent", "sampled agent", "random slates", "oracle", "somebody else's")


@pytest.fixture(params=NAMES)
def policy(request, world):
    return policies(world)[request.param]


def episodes(world, policy):
    policy.reseed(np.random.default_rng(3))
    return play(world, TopicRec(world.environment, world.items, users=4, seed=1), policy)


def test_a_saved_policy_plays_the_same_episodes(policy, world, tmp_path):
    first = episodes(world, policy)
    policy.save(tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved")
    assert type(loaded) is type(policy)
    second = episodes(world, loaded)
    np.testing.assert_array_equal(first.slates, second.slates)
    np.testing.assert_array_equal(first.rewards, second.rewards)


def test_every_user_has_an_action(policy, world):
    width = 20 if policy.chooses == "latents" else 0
    actions, state = policy.act(np.zeros((7, width), dtype=np.float32), policy.initial_state(7), None)
    assert actions.shape == (7, 32 if policy.chooses == "latents" else 10)
    policy.act(torch.zeros(7, width), state, torch.ones(7))


def test_mean_is_the_middle_of_the_samples(world):
    mean, sampled = MeanAgent(world.agents["expert"]), SampledAgent(world.agents["expert"])
    belief = torch.full((1, 20), 0.1)
    draws = sampled.act(belief.expand(4000, -1), None, None)[0]
    assert draws.std(dim=0).min() > 0.01
    squashed = torch.atanh(((draws - sampled.agent.center) / sampled.agent.scale).clamp(-0.999, 0.999))
    expected = torch.atanh((mean.act(belief, None, None)[0] - sampled.agent.center) / sampled.agent.scale)
    torch.testing.assert_close(squashed.mean(dim=0, keepdim=True), expected, atol=0.1, rtol=0)


def test_agents_of_any_size_are_saved_with_their_world(world, tmp_path):
    """Not only of the default size: the manifest states what the networks are."""
    agent = BehaviorAgent(GruBelief(belief_dim=12), world.bounds, hidden_size=24).requires_grad_(False)
    agents = {**world.agents, "medium": agent}  # the expert's belief is the world's, of the size of every dataset
    large = World(world.environment, world.items, world.ranker, world.bounds, agents, {})
    large.save(tmp_path)
    loaded = load_world(tmp_path)
    assert loaded.fingerprint == large.fingerprint
    assert loaded.agents["medium"].sizes() == agent.sizes() == {**GruBelief(belief_dim=12).sizes(), "hidden_size": 24}
    np.testing.assert_array_equal(
        episodes(large, MeanAgent(agent)).slates, episodes(loaded, MeanAgent(loaded.agents["medium"])).slates
    )


class TestDamagedFolders:
    @pytest.fixture
    def folder(self, world, tmp_path):
        MeanAgent(world.agents["expert"]).save(tmp_path / "saved")
        return tmp_path / "saved"

    @pytest.mark.parametrize("file", ["policy.yaml", "policy.safetensors"])
    @pytest.mark.parametrize("content", [None, b"", b"torn"])
    def test_missing_or_torn_file(self, folder, file, content):
        if content is None:
            (folder / file).unlink()
        else:
            (folder / file).write_bytes(content)
        with pytest.raises(PolicyError, match="not a readable policy") as caught:
            load_policy(folder)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ("kind: mean_agent", (PolicyError, "not a readable policy")),
            ("kind: mean_agnt\nschema_version: 1", (UnknownNameError, "Did you mean `mean_agent`")),
            ("kind: mean_agent\nschema_version: 99", (PolicyError, "schema version 99")),
            ("kind: no.such:Policy\nschema_version: 1", (UnknownNameError, "cannot be imported")),
            ("kind: pathlib:Path\nschema_version: 1", (UnknownNameError, "expected a subclass of Policy")),
            ("kind: mean_agent\nschema_version: 1\nagent: {}", (PolicyError, "not a readable policy")),
            ("kind: learned\nschema_version: 1\nalgorithm: bc", (PolicyError, "not a readable policy")),
        ],
    )
    def test_foreign_descriptions(self, folder, change, error):
        (folder / "policy.yaml").write_text(change)
        with pytest.raises(error[0], match=error[1]):
            load_policy(folder)
