"""Logged clicks against click models: how likely the clicks were, for users of whom nothing but the clicks is known."""

from dataclasses import dataclass

import numpy as np

from gems_ray.simulator import Environment, TopicRec

USERS_TRIED = 50  # possible users per logged episode, drawn as the simulator draws them
# Clicks after which an episode is judged: each moves a user by a tenth, so that by then all possible users are alike.
CLICKS_BEFORE = 25
CERTAIN = 0.002  # no probability is taken to be nearer to 0 or 1: some of what is possible was not tried


@dataclass(frozen=True, slots=True)
class Watched:
    """How likely logged clicks were under a click model.

    Args:
        slots: how many were judged.
        log_likelihood: of their clicks, natural logarithm.
        surprise: distance of it from its expectation, in standard deviations; about 0 under the right click model.
    """

    slots: int
    log_likelihood: float
    surprise: float


def watch(
    environment: Environment,
    items: np.ndarray,
    slates: np.ndarray,
    clicks: np.ndarray,
    active: np.ndarray,
    rng: np.random.Generator,
) -> Watched:
    """Replays episodes with many possible users each, and weighs the users by the clicks seen so far.

    Everything but the user's first preferences follows from slates and clicks: drift, boredom, queues.

    Args:
        environment: click model to judge by.
        items: (I, D) float32 item vectors.
        slates: (E, T + 1, K) int64, the first slate at 0.
        clicks: (E, T + 1, K) bool.
        active: (E, T) bool, false after the end of an episode.
        rng: draws the possible users.
    """
    episodes, steps = active.shape
    simulator = TopicRec(environment, items, users=episodes * USERS_TRIED, seed=rng)
    simulator.reset(clicks=np.repeat(clicks[:, 0], USERS_TRIED, axis=0))
    weights = np.zeros((episodes, USERS_TRIED))  # logarithms
    weights += _log_probability(simulator.info["click_probability"], clicks[:, 0])
    seen = np.zeros(episodes, dtype=np.int64)
    slots, total, expected, variance = 0, 0.0, 0.0, 0.0
    for t in range(steps):
        now = clicks[:, t + 1]
        shown = np.repeat(slates[:, t + 1], USERS_TRIED, axis=0)
        simulator.step(shown, clicks=np.repeat(now, USERS_TRIED, axis=0))
        probability = simulator.info["click_probability"]
        judged = active[:, t] & (seen >= CLICKS_BEFORE)
        if judged.any():
            chance = _clipped(_mean(probability, weights)[judged])
            log_odds = np.log(chance / (1 - chance))
            total += float(np.where(now[judged], np.log(chance), np.log(1 - chance)).sum())
            expected += float((chance * np.log(chance) + (1 - chance) * np.log(1 - chance)).sum())
            variance += float((chance * (1 - chance) * log_odds**2).sum())
            slots += chance.size
        weights += _log_probability(probability, now)
        seen += now.sum(axis=1)
    return Watched(slots, total, (total - expected) / variance**0.5 if variance else 0.0)


def _mean(probability: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Click probabilities (E, K) over the possible users, by their weights."""
    shares = np.exp(weights - weights.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return np.einsum("eu,euk->ek", shares, probability.reshape(*shares.shape, -1))


def _log_probability(probability: np.ndarray, clicks: np.ndarray) -> np.ndarray:
    """Log-probability (E, USERS_TRIED) of the clicks (E, K) for every possible user."""
    by_user = _clipped(probability.reshape(len(clicks), USERS_TRIED, -1))
    return np.where(clicks[:, None], np.log(by_user), np.log(1 - by_user)).sum(axis=2)


def _clipped(probability: np.ndarray) -> np.ndarray:
    return np.clip(probability.astype(np.float64), CERTAIN, 1 - CERTAIN)
