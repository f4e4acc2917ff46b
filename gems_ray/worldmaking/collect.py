"""Collection of offline datasets: behaviour policies in a world, whole episodes of many users at once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

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
from gems_ray.worldmaking.replay import buffer_size, training_buffer

USERS_AT_ONCE = 1_000
QUALITIES = ("random", "medium", "expert", "mixed", "medium_expert", "medium_replay")


@dataclass(frozen=True, slots=True)
class Share:
    """Episodes of one policy in a dataset.

    Args:
        policy: that chooses latents.
        episodes: how many it plays.
        stream: name of its random numbers; the same name means the same users.
    """

    policy: Policy
    episodes: int
    stream: str


def collect_policy(
    world: World,
    policy: Policy,
    episodes: int,
    seed: int,
    *,
    quality: str | None = None,
    progress: Callable[[int], None] = lambda episodes: None,
) -> Dataset:
    """Logs episodes of any policy that chooses latents.

    Args:
        world: where the episodes are played; its belief encodes the observations, whatever the policy plays on.
        policy: reseeded for every batch of users, so that the same seed gives the same dataset.
        episodes: how many.
        seed: of users, clicks and the policy's random numbers; every policy meets the same users.
        quality: what the file calls the behaviour policy, a word of your own; the policy's kind when None.
        progress: called with the number of episodes that have just been added.
    Returns:
        transitions in episode order.
    Raises:
        ConfigError: the policy chooses slates, or the number of episodes is impossible.
    """
    if policy.chooses != "latents":
        raise ConfigError(
            f"policy `{policy.kind}`: chooses slates, but a dataset holds latents. Collect with a policy that chooses "
            "latents, for example the agents of the world."
        )
    _check_numbers(episodes, 0.0)
    arrays = _log(world, [Share(policy, episodes, "policy")], np.arange(episodes), seed, progress)
    return _as_dataset(
        world, arrays, quality or policy.kind or type(policy).__name__, seed, deterministic=False, expert_share=0.0
    )


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
    """Logs episodes of the behaviour policies that a quality stands for.

    Args:
        world: where the episodes are played; its belief encodes the observations of every quality.
        quality: random latents, the medium or the expert agent; mixed or medium_expert, random or medium and expert
            episodes in random order, of an odd number of medium_expert one more of the expert; medium_replay, the
            training of the agent up to its medium stage.
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
    if quality in ("medium", "medium_expert") and "medium" not in world.agents:
        others = "random, expert or mixed" if "expert" in world.agents else "random"
        raise ConfigError(f"the world of {world.environment.name} holds no medium agent. Choose {others}.")
    _check_numbers(episodes, expert_share)
    if quality == "medium_replay":
        return _collect_replay(world, episodes, seed, deterministic, progress)
    of_experts = {"expert": episodes, "mixed": round(expert_share * episodes), "medium_expert": (episodes + 1) // 2}
    experts = of_experts.get(quality, 0)
    agent = MeanAgent if deterministic else SampledAgent
    shares = [Share(agent(world.expert), experts, "expert")] if experts else []
    if quality in ("medium", "medium_expert"):
        shares.append(Share(agent(world.agents["medium"]), episodes - experts, "medium"))
    else:
        shares.append(Share(RandomLatents(world.bounds), episodes - experts, "random"))
    places = np.arange(episodes)
    if quality in ("mixed", "medium_expert"):
        places = stream(seed, "collect", "order").permutation(episodes)
    arrays = _log(world, shares, places, seed, progress)
    return _as_dataset(world, arrays, quality, seed, deterministic=deterministic, expert_share=experts / episodes)


def _collect_replay(
    world: World, episodes: int, seed: int, deterministic: bool, progress: Callable[[int], None]
) -> Dataset:
    """Episodes of the agent's training in their order; of more than are asked for, some by chance."""
    if deterministic:
        raise ConfigError("quality medium_replay: holds what the agent sampled in training. Leave out deterministic.")
    if episodes > (size := buffer_size(world)):
        raise ConfigError(
            f"quality medium_replay: the training buffer of {world.environment.name} held {size} episodes at the "
            f"medium stage, {episodes} are asked for. Ask for {size} or fewer."
        )
    told = 0

    def tell(share: float) -> None:
        nonlocal told
        progress(int(share * episodes) - told)
        told = int(share * episodes)

    buffer = training_buffer(world, tell)
    rows = np.sort(stream(seed, "collect", "replay").choice(size, episodes, replace=False))
    chosen = LatentEpisodes(**{column.name: getattr(buffer, column.name)[rows] for column in fields(buffer)})
    chosen.observations[:] = _world_beliefs(world, chosen)
    arrays = _empty(world, episodes)
    _fill(arrays, np.arange(episodes), chosen)
    return _as_dataset(world, arrays, "medium_replay", seed, deterministic=False, expert_share=0.0)


def _check_numbers(episodes: int, expert_share: float) -> None:
    if episodes < 1 or not 0 <= expert_share <= 1:
        raise ConfigError(f"episodes {episodes}, expert share {expert_share}: expected 1 or more, and 0 to 1.")


def _log(
    world: World, shares: Sequence[Share], places: np.ndarray, seed: int, progress: Callable[[int], None]
) -> dict[str, np.ndarray]:
    """Arrays of the dataset format with the episodes first; `places` says where each episode goes."""
    arrays = _empty(world, len(places))
    done = 0
    for share in shares:
        for batch in _episodes(world, share, seed):
            size = len(batch.rewards)
            _fill(arrays, places[done : done + size], batch)
            done += size
            progress(size)
    return arrays


def _as_dataset(
    world: World,
    arrays: Mapping[str, np.ndarray],
    quality: str,
    seed: int,
    *,
    deterministic: bool,
    expert_share: float,
) -> Dataset:
    """Transitions in episode order, and where they come from."""
    metadata = DatasetMetadata(
        environment=world.environment.name,
        quality=quality,
        episodes=len(arrays["rewards"]),
        seed=seed,
        deterministic=deterministic,
        expert_share=expert_share,
        world_fingerprint=world.fingerprint,
        action_center=tuple(world.bounds.center.tolist()),
        action_scale=tuple(world.bounds.scale.tolist()),
        behavior_return=round(float(arrays["rewards"].sum(axis=1).mean()), 4),
        program_version=__version__,
    )
    flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
    return Dataset(**flat, metadata=metadata)


def _episodes(world: World, share: Share, seed: int) -> Iterator[LatentEpisodes]:
    """Batches of episodes of one policy, with the world's beliefs as observations."""
    policy, name = share.policy, share.stream
    for batch, start in enumerate(range(0, share.episodes, USERS_AT_ONCE)):
        users = min(USERS_AT_ONCE, share.episodes - start)
        simulator = TopicRec(world.environment, world.items, users=users, seed=stream(seed, "collect", name, batch))
        policy.reseed(stream(seed, "collect", name, batch, "actions"))
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
