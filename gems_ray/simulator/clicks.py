"""The click model: relevance of each slot, times the chance that the user looks at it."""

import numpy as np

from gems_ray.simulator.environments import Environment


class ClickModel:
    """Click probabilities of slates, for users whose boring topics are already masked.

    Args:
        environment: click and diversity parameters.
        items: (I, D) float32, item vectors.
        item_topics: (I,) int, main topic of every item.
    Source: Deffayet et al. (2023), section 5.1.
    """

    def __init__(self, environment: Environment, items: np.ndarray, item_topics: np.ndarray) -> None:
        self._environment = environment
        self._items = items
        self._item_topics = item_topics
        self._examination = environment.examination()
        self._max_score = np.linalg.norm(items, axis=1).max()

    def __call__(self, slates: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Click probability and score of every slot.

        Args:
            slates: (U, K) int, item of every slot.
            users: (U, D) float32, preferences with boring topics set to zero.
        Returns:
            probability (U, K) float32 and score (U, K) float32.
        """
        environment = self._environment
        scores = np.einsum("ukd,ud->uk", self._items[slates], users) / self._max_score
        with np.errstate(over="ignore"):  # of a steep slope: the relevance is 0
            distance = (environment.relevance_offset - scores) * np.float32(environment.relevance_slope)
            relevance = 1 / (1 + np.exp(distance))
        if environment.diversity_penalty != 1:
            repeated = self.most_frequent_topic(slates) >= environment.diversity_threshold
            relevance[repeated] /= np.float32(environment.diversity_penalty)
        return relevance * self._examination, scores

    def most_frequent_topic(self, slates: np.ndarray) -> np.ndarray:
        """How many slots the most frequent topic of each slate takes: (U, K) -> (U,) int."""
        return topic_counts(self._item_topics[slates], self._environment.num_topics).max(axis=1)


def topic_counts(topics: np.ndarray, num_topics: int) -> np.ndarray:
    """Occurrences of every topic in each row; -1 entries are empty and count for none.

    Args:
        topics: (U, n) int, topic of each entry or -1.
    Returns:
        (U, num_topics) int.
    """
    rows = len(topics)
    width = num_topics + 1  # column 0 collects the empty entries
    flat = (topics + (1 + width * np.arange(rows))[:, None]).ravel()
    return np.bincount(flat, minlength=rows * width).reshape(rows, width)[:, 1:]
