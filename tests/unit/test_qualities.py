"""The behaviour policies that a quality stands for, and the training that `medium_replay` repeats."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from gems_ray.data.npz import load_dataset
from gems_ray.errors import CheckpointError, ConfigError
from gems_ray.experiments.spec import Quality
from gems_ray.simulator import environment
from gems_ray.world.bundle import load_world, shipped_worlds
from gems_ray.world.ranker import RankerConfig
from gems_ray.worldmaking.agent import AgentTrainer, AgentTraining
from gems_ray.worldmaking.collect import QUALITIES, collect_dataset
from gems_ray.worldmaking.ranker import RankerTraining
from gems_ray.worldmaking.replay import buffer_size
from gems_ray.worldmaking.world import WorldRecipe, train_world

STEPS = 5
SCHEDULE = AgentTraining(
    episodes=80,
    random_episodes=20,
    users_per_round=10,
    updates_per_episode=0.2,
    trajectories_per_update=5,
    buffer_episodes=30,
    validation_interval=20,
    validation_users=5,
)
RECIPE = WorldRecipe(
    environment("diffuse_mix", episode_length=STEPS),
    seed=3,
    ranker=RankerConfig(encoder_sizes=(8,), decoder_sizes=(8,)),
    ranker_training=RankerTraining(sessions=20, epochs=1),
    agent_training=SCHEDULE,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world whose training takes a second, and what its agent did up to every number of episodes."""
    played = []
    collect = AgentTrainer._collect

    def listening(trainer):
        episodes = collect(trainer)
        played.append((trainer.episodes + len(episodes.rewards), episodes))
        return episodes

    folder = tmp_path_factory.mktemp("worlds") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AgentTrainer, "_collect", listening)
        train_world(RECIPE, folder, "a test", lambda report, seconds: None)
    return load_world(folder), played


def episodes_of(dataset):
    return dataset.actions.reshape(-1, STEPS, 32)


def test_one_list_of_qualities():
    assert get_args(Quality) == QUALITIES


def test_medium_replay_is_what_the_training_saw(trained):
    world, played = trained
    medium = world.facts["medium"]["episodes"]
    seen = [episodes for count, episodes in played if count <= medium]
    size = min(medium, SCHEDULE.buffer_episodes)
    assert buffer_size(world) == size
    dataset = collect_dataset(world, "medium_replay", size, seed=0)
    for name, array in (("actions", episodes_of(dataset)), ("rewards", dataset.rewards.reshape(-1, STEPS))):
        np.testing.assert_array_equal(array, np.concatenate([getattr(part, name) for part in seen])[-size:])
    shown = np.concatenate([part.slates[:, 1:] for part in seen])[-size:]
    np.testing.assert_array_equal(dataset.slates.reshape(-1, STEPS, 10), shown)
    assert (dataset.metadata.quality, dataset.metadata.episodes) == ("medium_replay", size)
    assert dataset.metadata.world_fingerprint == world.fingerprint


def test_medium_replay_is_observed_by_the_world(trained):
    world, _ = trained
    dataset = collect_dataset(world, "medium_replay", 10, seed=0)
    slates, clicks = torch.from_numpy(dataset.slates[:1].astype(np.int64)), torch.from_numpy(dataset.clicks[:1])
    belief = world.belief.step(slates, clicks, torch.from_numpy(dataset.observations[:1]))
    np.testing.assert_allclose(dataset.next_observations[:1], belief.numpy(), atol=1e-5)
    inside = ~dataset.terminals[:-1]
    np.testing.assert_array_equal(dataset.next_observations[:-1][inside], dataset.observations[1:][inside])


def test_fewer_episodes_are_drawn_from_the_buffer_in_their_order(trained):
    world, _ = trained
    told = []
    whole = episodes_of(collect_dataset(world, "medium_replay", buffer_size(world), 0, progress=told.append))
    assert sum(told) == buffer_size(world)
    part = collect_dataset(world, "medium_replay", 7, seed=1)
    places = [int(np.flatnonzero((whole == episode).all(axis=(1, 2)))[0]) for episode in episodes_of(part)]
    assert places == sorted(set(places))
    assert part.fingerprint == collect_dataset(world, "medium_replay", 7, seed=1).fingerprint
    assert part.fingerprint != collect_dataset(world, "medium_replay", 7, seed=2).fingerprint


def test_medium_expert_is_half_and_half(world):
    logged = collect_dataset(world, "medium_expert", 10, seed=0, deterministic=True)
    assert logged.metadata.expert_share == 0.5
    with torch.no_grad():
        mean = world.agents["expert"].act(torch.from_numpy(logged.observations)).numpy()
    by_expert = np.isclose(logged.actions, mean, atol=1e-4).all(axis=1).reshape(10, 100)
    assert by_expert.all(axis=1).sum() == 5
    assert (~by_expert[~by_expert.all(axis=1)]).mean() > 0.9, "the others are the medium agent's"
    assert 0 < np.flatnonzero(by_expert.all(axis=1)).mean() < 9, "they are spread over the file"
    expert = collect_dataset(world, "expert", 5, seed=0, deterministic=True)
    assert {episode.tobytes() for episode in expert.actions.reshape(5, 100, 32)} <= {
        episode.tobytes() for episode in logged.actions.reshape(10, 100, 32)
    }, "every quality meets the same users"


@pytest.mark.parametrize(("episodes", "experts"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_the_odd_episode_of_medium_expert_is_the_experts(world, episodes, experts):
    logged = collect_dataset(world, "medium_expert", episodes, seed=0)
    assert round(logged.metadata.expert_share * episodes) == experts


def test_a_share_of_experts_is_for_mixed_data_only(world_folder, tmp_path, command_line):
    collect = ["collect", "--environment", "diffuse_mix", "--world", world_folder, "--output", tmp_path / "new.npz"]
    code, _, error = command_line(*collect, "--quality", "medium_expert", "--expert-share", "0.5")
    assert (code, error.count("\n")) == (2, 1)
    assert "--expert-share: expected with mixed data only, found quality medium_expert. Leave it out" in error
    assert not list(tmp_path.iterdir())
    assert command_line(*collect, "--quality", "mixed", "--expert-share", "0.5", "--episodes", "2")[0] == 0
    assert load_dataset(tmp_path / "new.npz").metadata.expert_share == 0.5


def test_every_shipped_world_says_how_large_its_buffer_was(request):
    sizes = {}
    for name in shipped_worlds():
        folder = request.config.rootpath / "gems_ray" / "world" / "shipped" / name
        sizes[name] = buffer_size(load_world(folder))
        log = (folder / "agent_log.csv").read_text().splitlines()
        (line,) = (line for line in log if line.startswith(f"{sizes[name]},"))
        medium = load_world(folder).facts["medium"]["validation_return"]
        assert float(line.split(",")[2]) == pytest.approx(medium, abs=0.01)
    assert sizes == {"diffuse_topdown": 2000, "diffuse_mix": 4000, "diffuse_divpen": 3000, "focused_topdown": 4000}


def test_impossible_requests_are_one_line(world, trained):
    tiny, _ = trained
    size = buffer_size(tiny)
    with pytest.raises(ConfigError, match=f"held {size} episodes at the medium stage, {size + 1} are asked for"):
        collect_dataset(tiny, "medium_replay", size + 1, 0)
    with pytest.raises(ConfigError, match="Leave out deterministic"):
        collect_dataset(tiny, "medium_replay", 5, 0, deterministic=True)
    with pytest.raises(ConfigError, match="does not say how its medium agent was trained") as error:
        collect_dataset(world, "medium_replay", 5, 0)
    assert "\n" not in str(error.value)
    lacking = replace(world, agents={"expert": world.agents["expert"]})
    with pytest.raises(ConfigError, match="holds no medium agent. Choose random, expert or mixed"):
        collect_dataset(lacking, "medium_expert", 5, 0)
    with pytest.raises(ConfigError, match="holds no medium agent. Choose random.$"):
        collect_dataset(replace(world, agents={}, encoder=world.belief), "medium", 5, 0)


def test_the_training_of_an_earlier_version_is_not_continued(trained):
    world, _ = trained
    trainer = AgentTrainer(world.environment, world.items, world.ranker, world.bounds, SCHEDULE, 3)
    with pytest.raises(CheckpointError, match="earlier version"):
        trainer.load({}, {"milestone_returns": []})
