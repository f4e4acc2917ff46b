"""User preferences: the draw at reset and the drift that clicks cause."""

import numpy as np

from gems_ray.simulator.environments import Environment
from gems_ray.simulator.items import topic_coordinates
from gems_ray.simulator.streams import Draws


def draw_users(environment: Environment, count: int, rng: Draws) -> np.ndarray:
    """Draws preference vectors whose topic norms sum to one.

    Returns:
        (count, D) float32, non-negative.
    Source: Deffayet et al. (2023), section 5.1.
    """
    weight = rng.random((count, environment.num_topics, 1)) ** 3
    weight /= weight.sum(axis=1, keepdims=True)
    vectors = weight * topic_coordinates(environment, count, rng)
    vectors /= np.linalg.norm(vectors, axis=2).sum(axis=1)[:, None, None]
    return vectors.reshape(count, environment.item_dim).astype(np.float32)


def drift(users: np.ndarray, clicked_items: np.ndarray, click_counts: np.ndarray, environment: Environment) -> None:
    """Moves each user towards the clicked items, in rank order, one after the other; in place.

    Args:
        users: (U, D) float32, preferences, changed in place.
        clicked_items: (U, K, D) float32, vectors of the clicked items, in rank order from index 0.
        click_counts: (U,) int, how many of the K entries are clicks.
    """
    inertia = np.float32(environment.preference_inertia)
    for nth in range(int(click_counts.max(initial=0))):
        moved = np.flatnonzero(click_counts > nth)
        preference = inertia * users[moved] + (1 - inertia) * clicked_items[moved, nth]
        users[moved] = preference / topic_norm_sum(preference, environment)[:, None]


def topic_norm_sum(vectors: np.ndarray, environment: Environment) -> np.ndarray:
    """Sum of the Euclidean norms of a vector's topics: (U, D) -> (U,)."""
    squares = (vectors * vectors).reshape(len(vectors), environment.num_topics, environment.topic_size)
    return np.sqrt(squares.sum(axis=2)).sum(axis=1)
