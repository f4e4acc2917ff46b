"""Collection of offline datasets: behaviour policies in a world, whole episodes of many users at once."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gems_ray import __version__
from gems_ray.data.schema import Dataset, DatasetMetadata
from gems_ray.envs.rollout import LatentEpisodes, play
from gems_ray.errors import ConfigError
from gems_ray.policies.base import Policy
from gems_ray.policies.latents import MeanAgent, RandomLatents, SampledAgent
from gems_ray.rng import stream
from gems_ray.simulator import TopicRec
from gems_ray.world.bundle import World

USERS_AT_ONCE = 1_000
QUALITIES = ("random", "medium", "expert", "mixed")


def collect_dataset(
    world: World,
    quality: str,
    episodes: int,
    seed: int,
    *,
    deterministic: bool = False,
    expert_share: float = 1 / 3,
    progress: Callable[[int], None] = lambda episodes: None,
) -> Dataset:
    """Logs episodes of a behaviour policy.

    Args:
        world: where the episodes are played; its belief encodes the observations of every quality.
        quality: random latents, the medium or the expert agent, or mixed: random and expert episodes in random order.
        episodes: how many.
        seed: the same seed gives the same dataset.
        deterministic: take the agent's mean action in place of a sample.
        expert_share: share of expert episodes where the quality is mixed.
        progress: called with the number of episodes that have just been added.
    Returns:
        transitions in episode order.
    Raises:
        ConfigError: the quality does not exist, or a number is impossible.
    """
    if quality not in QUALITIES:
        raise ConfigError(f"quality `{quality}` does not exist. Known: {', '.join(QUALITIES)}.")
    if quality == "medium" and "medium" not in world.agents:
        raise ConfigError(f"the world of {world.environment.name} holds no medium agent. Choose expert or mixed.")
    if episodes < 1 or not 0 <= expert_share <= 1:
        raise ConfigError(f"episodes {episodes}, expert share {expert_share}: expected 1 or more, and 0 to 1.")

    share = {"expert": 1.0, "mixed": expert_share}.get(quality, 0.0)
    experts = round(share * episodes)
    sources = {"expert": experts, "medium" if quality == "medium" else "random": episodes - experts}
    places = stream(seed, "collect", "order").permutation(episodes) if quality == "mixed" else np.arange(episodes)
    arrays = _empty(world, episodes)
    done = 0
    for source, count in sources.items():
        for batch in _episodes(world, source, count, seed, deterministic):
            size = len(batch.rewards)
            _fill(arrays, places[done : done + size], batch)
            done += size
            progress(size)

    behavior_return = float(arrays["rewards"].sum(axis=1).mean())
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    metadata = DatasetMetadata(
        environment=world.environment.name,
        quality=quality,
        episodes=episodes,
        seed=seed,
        deterministic=deterministic,
        expert_share=experts / episodes,
        world_fingerprint=world.fingerprint,
        action_center=tuple(world.bounds.center.tolist()),
        action_scale=tuple(world.bounds.scale.tolist()),
        behavior_return=round(behavior_return, 4),
        program_version=__version__,
    )
    return Dataset(**flat, metadata=metadata)


def _episodes(world: World, source: str, count: int, seed: int, deterministic: bool) -> Iterator[LatentEpisodes]:
    """Batches of episodes of one behaviour policy, with the world's beliefs as observations."""
    policy: Policy = RandomLatents(world.bounds)
    if agent := world.agents.get(source):
        policy = MeanAgent(agent) if deterministic else SampledAgent(agent)
    for batch, start in enumerate(range(0, count, USERS_AT_ONCE)):
        users = min(USERS_AT_ONCE, count - start)
        simulator = TopicRec(world.environment, world.items, users=users, seed=stream(seed, "collect", source, batch))
        policy.reseed(stream(seed, "collect", source, batch, "actions"))
        episodes = play(world, simulator, policy)
        assert isinstance(episodes, LatentEpisodes)
        if policy.encoder is not None and policy.encoder is not world.belief:
            episodes.observations[:] = _world_beliefs(world, episodes)
        yield episodes


@torch.no_grad()
def _world_beliefs(world: World, episodes: LatentEpisodes) -> np.ndarray:
    """What the world's encoder makes of episodes that an agent with another belief played: (U, T + 1, H)."""
    slates = torch.from_numpy(episodes.slates.astype(np.int64))
    return world.belief(slates, torch.from_numpy(episodes.clicks)).numpy()


def _empty(world: World, episodes: int) -> dict[str, np.ndarray]:
    """Arrays of the dataset format, with the episodes first."""
    steps, slots = world.environment.episode_length, world.environment.slate_size
    shapes = {
        "observations": (world.belief.belief_dim,),
        "actions": (len(world.bounds.center),),
        "rewards": (),
        "next_observations": (world.belief.belief_dim,),
    }
    arrays: dict[str, np.ndarray] = {
        name: np.empty((episodes, steps, *shape), dtype=np.float32) for name, shape in shapes.items()
    }
    arrays["terminals"] = np.zeros((episodes, steps), dtype=bool)
    arrays["terminals"][:, -1] = True
    arrays["slates"] = np.empty((episodes, steps, slots), dtype=np.int16)
    arrays["clicks"] = np.empty((episodes, steps, slots), dtype=bool)
    return arrays


def _fill(arrays: dict[str, np.ndarray], places: np.ndarray, batch: LatentEpisodes) -> None:
    arrays["observations"][places] = batch.observations[:, :-1]
    arrays["next_observations"][places] = batch.observations[:, 1:]
    arrays["actions"][places] = batch.actions
    arrays["rewards"][places] = batch.rewards
    arrays["slates"][places] = batch.slates[:, 1:]
    arrays["clicks"][places] = batch.clicks[:, 1:]
