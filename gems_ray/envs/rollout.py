"""Whole episodes of many users at once."""

from dataclasses import dataclass

import numpy as np

from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.policies.base import Policy
from gems_ray.simulator import TopicRec
from gems_ray.world.bundle import World


@dataclass(frozen=True, slots=True)
class SlateEpisodes:
    """What U users were shown and did over T steps; index 0 of slates and clicks is the first slate.

    Args:
        slates: (U, T + 1, K) int16.
        clicks: (U, T + 1, K) bool.
        rewards: (U, T) float32, clicks.
        bored_topics: (U, T) uint8, how many topics bored the user in that step (privileged).
    """

    slates: np.ndarray
    clicks: np.ndarray
    rewards: np.ndarray
    bored_topics: np.ndarray


@dataclass(frozen=True, slots=True)
class LatentEpisodes(SlateEpisodes):
    """Episodes of a policy that acts on beliefs.

    Args:
        observations: (U, T + 1, H) float32, beliefs.
        actions: (U, T, Z) float32, latent units.
    """

    observations: np.ndarray
    actions: np.ndarray


def play(world: World, simulator: TopicRec, policy: Policy) -> SlateEpisodes:
    """One episode of every user of `simulator`, on the world's beliefs or those of the policy's own encoder.

    Returns:
        `LatentEpisodes` where the policy chooses latents.
    """
    if policy.chooses == "slates":
        return rollout_slates(simulator, policy)
    return rollout(SlateVectorEnv(simulator, world.ranker, policy.encoder or world.belief, world.bounds), policy)


def rollout(env: SlateVectorEnv, policy: Policy, user_vectors: np.ndarray | None = None) -> LatentEpisodes:
    """One episode of every user of `env`.

    Args:
        env: users, decoder and belief.
        policy: that chooses latents.
        user_vectors: (U, D) preferences at the start; drawn when None.
    """
    record = _Record(env.simulator)
    belief, info = env.reset(options={"user_vectors": user_vectors})
    record.first(info)
    steps = record.rewards.shape[1]
    observations = np.empty((env.num_envs, steps + 1, belief.shape[1]), dtype=np.float32)
    observations[:, 0] = belief
    actions = np.empty((env.num_envs, steps, env.latent_dim), dtype=np.float32)
    state, reward = policy.initial_state(env.num_envs), None
    for t in range(steps):
        chosen, state = policy.act(belief, state, reward)
        actions[:, t] = chosen.cpu()
        belief, reward, _, _, info = env.step(actions[:, t])
        observations[:, t + 1] = belief
        record.add(t, info, reward)
    return LatentEpisodes(
        record.slates, record.clicks, record.rewards, record.bored_topics, observations=observations, actions=actions
    )


def rollout_slates(simulator: TopicRec, policy: Policy) -> SlateEpisodes:
    """One episode of every user of `simulator` under a policy that chooses slates without observing anything."""
    record = _Record(simulator)
    record.first(simulator.reset())
    nothing = np.empty((simulator.num_users, 0), dtype=np.float32)
    state, reward = policy.initial_state(simulator.num_users), None
    for t in range(simulator.environment.episode_length):
        slates, state = policy.act(nothing, state, reward)
        shown, reward, _, info = simulator.step(slates.numpy())
        record.add(t, {**shown, **info}, reward)
    return SlateEpisodes(record.slates, record.clicks, record.rewards, record.bored_topics)


class _Record:
    """Arrays of a rollout under way."""

    def __init__(self, simulator: TopicRec) -> None:
        users, steps = simulator.num_users, simulator.environment.episode_length
        slots = simulator.environment.slate_size
        self.slates = np.empty((users, steps + 1, slots), dtype=np.int16)
        self.clicks = np.empty((users, steps + 1, slots), dtype=bool)
        self.rewards = np.empty((users, steps), dtype=np.float32)
        self.bored_topics = np.empty((users, steps), dtype=np.uint8)

    def first(self, shown: dict[str, np.ndarray]) -> None:
        self.slates[:, 0], self.clicks[:, 0] = shown["slate"], shown["clicks"]

    def add(self, t: int, info: dict[str, np.ndarray], reward: np.ndarray) -> None:
        self.slates[:, t + 1], self.clicks[:, t + 1] = info["slate"], info["clicks"]
        self.rewards[:, t] = reward
        self.bored_topics[:, t] = info["bored"].sum(axis=1)
