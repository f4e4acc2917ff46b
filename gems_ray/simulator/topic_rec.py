"""TopicRec: users with drifting preferences and boredom who click on slates, many users at once."""

from collections.abc import Sequence

import numpy as np

from gems_ray.errors import SimulatorError
from gems_ray.simulator.clicks import ClickModel, topic_counts
from gems_ray.simulator.environments import Environment
from gems_ray.simulator.items import check_items, item_vectors, topic_norms
from gems_ray.simulator.streams import Draws, PerUser
from gems_ray.simulator.users import draw_users, drift

EMPTY = -1  # an empty place in a queue; in a requested slate: the oracle's choice

Observation = dict[str, np.ndarray]
Info = dict[str, np.ndarray]


class TopicRec:
    """The simulator of Deffayet et al. (2023), batched over users; every array has the users first.

    An observation holds `slate` (U, K) int64 and `clicks` (U, K) bool. The privileged `info` of a reset or step, never
    an input of a policy, holds `click_probability` and `score` (U, K) float32, `topic` (U, K) int of the slots,
    `bored` (U, topics) bool as it was in that step, and `user` (U, D) float32, the preferences after it. It is also
    kept in `self.info`.

    Args:
        environment: parameters, for example `environment("diffuse_mix")`.
        items: (I, D) float item vectors; None draws or reads what `environment.items` names.
        users: U, how many users are simulated at once.
        seed: integer or NumPy generator; the simulator draws from nothing else.
    """

    def __init__(
        self,
        environment: Environment,
        items: np.ndarray | None = None,
        *,
        users: int = 1,
        seed: int | np.random.Generator = 0,
    ) -> None:
        if users < 1:
            raise SimulatorError(f"users: expected 1 or more, found {users}.")
        self.environment = environment
        self.num_users = users
        generator = np.random.default_rng(seed)
        self._rng: Draws = generator
        if items is None:
            items = item_vectors(environment, generator)
        self.items = check_items(environment, items)
        norms = topic_norms(environment, self.items)
        self.item_topics = norms.argmax(axis=1)
        self.first_slate = norms.argmax(axis=0)  # for every topic the item that is strongest in it
        self._click_model = ClickModel(environment, self.items, self.item_topics)
        self._time = environment.episode_length  # no episode is under way before the first reset

    def reseed(self, seed: int | np.random.Generator | Sequence[np.random.Generator]) -> None:
        """Replaces the generator of users and clicks.

        Args:
            seed: integer or generator for all users together, or one generator for each user.
        """
        if isinstance(seed, Sequence):
            if len(seed) != self.num_users:
                raise SimulatorError(f"seed: expected one for each of {self.num_users} users, found {len(seed)}.")
            self._rng = PerUser(seed)
        else:
            self._rng = np.random.default_rng(seed)

    def reset(self, user_vectors: np.ndarray | None = None, clicks: np.ndarray | None = None) -> Observation:
        """Starts an episode for every user and shows the first slate, the same to everyone.

        Args:
            user_vectors: (U, D) float preferences; drawn when None.
            clicks: (U, K) bool clicks on the first slate (replay); drawn when None.
        Raises:
            SimulatorError: an argument has another shape, or preferences are not finite.
        """
        environment = self.environment
        if user_vectors is None:
            self._users = draw_users(environment, self.num_users, self._rng)
        else:
            self._users = self._checked(user_vectors, (environment.item_dim,), "user_vectors").astype(np.float32)
            if not np.isfinite(self._users).all():
                raise SimulatorError("user_vectors: expected finite numbers, found NaN or infinity.")
        topics = (self.num_users, environment.num_topics)
        self._time = 0
        self._bored = np.zeros(topics, dtype=bool)
        self._timers = np.full(topics, environment.boredom_duration)
        self._topic_queue = ClickQueue(self.num_users, environment.recent_clicks)
        self._step_queue = ClickQueue(self.num_users, environment.recent_clicks)

        slates = np.tile(self.first_slate[: environment.slate_size], (self.num_users, 1))
        probability, scores = self._click_model(slates, self._users)
        clicks = self._clicks(clicks, probability)
        rows, ranks, order = clicks_in_order(clicks)
        counts = clicks.sum(axis=1)
        self._topic_queue.append(rows, order, self.item_topics[slates[rows, ranks]], counts)
        if environment.queue_alignment == "aligned":
            self._step_queue.append(rows, order, np.zeros(len(rows), dtype=np.int64), counts)
        self._remember(slates, probability, scores)
        return {"slate": slates, "clicks": clicks}

    def step(
        self, slates: np.ndarray, clicks: np.ndarray | None = None
    ) -> tuple[Observation, np.ndarray, np.ndarray, Info]:
        """Shows every user a slate.

        Args:
            slates: (U, K) int items; -1 at rank r asks for the user's r-th best item (short-term oracle).
            clicks: (U, K) bool clicks that are taken as they are (replay); drawn when None.
        Returns:
            observation, reward (U,) float32 in clicks, done (U,) bool, info.
        Raises:
            SimulatorError: the episode is over, or an argument has another shape or unknown items.
        """
        environment = self.environment
        if self._time >= environment.episode_length:
            raise SimulatorError("The episode is over or never began: call reset() before step().")
        slates = self._checked_slates(slates)

        self._time += 1
        self._update_boredom()
        masked = self._masked_users()
        slates = self._with_oracle_items(slates, masked)
        probability, scores = self._click_model(slates, masked)
        clicks = self._clicks(clicks, probability)
        self._take_clicks(slates, clicks)

        reward = clicks.sum(axis=1, dtype=np.float32)
        done = np.full(self.num_users, self._time >= environment.episode_length)
        return {"slate": slates, "clicks": clicks}, reward, done, self._remember(slates, probability, scores)

    @property
    def topic_queue(self) -> np.ndarray:
        """Topics of the remembered clicks, (U, recent_clicks) int, oldest first, then -1."""
        return self._topic_queue.entries.copy()

    def _update_boredom(self) -> None:
        """A topic stays boring until its timer has run out, and becomes so by too many remembered clicks."""
        environment = self.environment
        self._timers -= self._bored
        self._bored &= self._timers != 0
        self._timers[~self._bored] = environment.boredom_duration
        clicked = topic_counts(self._topic_queue.entries, environment.num_topics)
        self._bored |= clicked >= environment.boredom_threshold

    def _masked_users(self) -> np.ndarray:
        environment = self.environment
        by_topic = self._users.reshape(self.num_users, environment.num_topics, environment.topic_size)
        masked = by_topic * ~self._bored[:, :, None]
        if environment.short_term_boost != 1:
            favourite = np.linalg.norm(masked, axis=2).argmax(axis=1)
            masked[np.arange(self.num_users), favourite] *= np.float32(environment.short_term_boost)
        return masked.reshape(self.num_users, environment.item_dim)

    def _with_oracle_items(self, slates: np.ndarray, masked_users: np.ndarray) -> np.ndarray:
        """The slates with the r-th best item wherever they hold -1 at rank r."""
        asked = np.flatnonzero((slates == EMPTY).any(axis=1))
        if not len(asked):
            return slates
        size = self.environment.slate_size
        scores = masked_users[asked] @ self.items.T
        best = np.argpartition(-scores, size - 1, axis=1)[:, :size]
        by_rank = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, by_rank, axis=1)
        slates = slates.copy()
        slates[asked] = np.where(slates[asked] == EMPTY, best, slates[asked])
        return slates

    def _take_clicks(self, slates: np.ndarray, clicks: np.ndarray) -> None:
        """Queues the clicks, forgets old ones, moves the users."""
        rows, ranks, order = clicks_in_order(clicks)
        clicked = slates[rows, ranks]
        counts = clicks.sum(axis=1)
        self._topic_queue.append(rows, order, self.item_topics[clicked], counts)
        self._step_queue.append(rows, order, np.full(len(rows), self._time), counts)
        steps = self._step_queue.entries
        oldest = self._time - self.environment.recent_window
        forgotten = ((steps != EMPTY) & (steps < oldest)).sum(axis=1)
        self._topic_queue.pop(forgotten)
        self._step_queue.pop(forgotten)

        vectors = np.zeros((*slates.shape, self.environment.item_dim), dtype=np.float32)
        vectors[rows, order] = self.items[clicked]
        drift(self._users, vectors, counts, self.environment)

    def _clicks(self, given: np.ndarray | None, probability: np.ndarray) -> np.ndarray:
        if given is None:
            return self._rng.random(probability.shape, dtype=np.float32) < probability
        return self._checked(given, (self.environment.slate_size,), "clicks").astype(bool)

    def _remember(self, slates: np.ndarray, probability: np.ndarray, scores: np.ndarray) -> Info:
        self.info = {
            "click_probability": probability,
            "score": scores,
            "topic": self.item_topics[slates],
            "bored": self._bored.copy(),
            "user": self._users.copy(),
        }
        return self.info

    def _checked(self, array: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
        array = np.asarray(array)
        if array.shape != (self.num_users, *shape):
            raise SimulatorError(f"{name}: expected shape {(self.num_users, *shape)}, found {array.shape}.")
        return array

    def _checked_slates(self, slates: np.ndarray) -> np.ndarray:
        environment = self.environment
        slates = self._checked(slates, (environment.slate_size,), "slates")
        if slates.dtype.kind not in "iu":
            raise SimulatorError(f"slates: expected integers, found {slates.dtype}.")
        slates = slates.astype(np.int64, copy=False)
        if slates.min() < EMPTY or slates.max() >= environment.num_items:
            raise SimulatorError(
                f"slates: expected items 0 to {environment.num_items - 1} (or -1 for the oracle's choice), "
                f"found {slates.min()} to {slates.max()}."
            )
        return slates


class ClickQueue:
    """A queue of the last `length` entries of each of U users, oldest first, -1 where empty."""

    def __init__(self, users: int, length: int) -> None:
        self.entries = np.full((users, length), EMPTY, dtype=np.int64)
        self._sizes = np.zeros(users, dtype=np.int64)

    def append(self, rows: np.ndarray, order: np.ndarray, values: np.ndarray, counts: np.ndarray) -> None:
        """Appends to many users at once and drops the oldest entries beyond the length.

        Args:
            rows: (n,) int, the user of each value; each user's values stand in their order.
            order: (n,) int, place of each value among its user's values.
            values: (n,) int.
            counts: (U,) int, values per user.
        """
        users, length = self.entries.shape
        longest = int(counts.max(initial=0))
        if not longest:
            return
        extended = np.full((users, length + longest), EMPTY, dtype=np.int64)
        extended[:, :length] = self.entries
        extended[rows, self._sizes[rows] + order] = values
        self._sizes += counts
        overflow = np.maximum(self._sizes - length, 0)
        self._sizes -= overflow
        self.entries = _shifted(extended, overflow, length)

    def pop(self, counts: np.ndarray) -> None:
        """Drops the `counts` (U,) oldest entries of each user."""
        popped = np.flatnonzero(counts)
        if not len(popped):
            return
        length = self.entries.shape[1]
        padded = np.full((len(popped), 2 * length), EMPTY, dtype=np.int64)
        padded[:, :length] = self.entries[popped]
        self.entries[popped] = _shifted(padded, counts[popped], length)
        self._sizes -= counts


def _shifted(rows: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    """`length` columns of each row, from its own offset on."""
    return np.take_along_axis(rows, offsets[:, None] + np.arange(length), axis=1)


def clicks_in_order(clicks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users and ranks of all clicks, users first and ranks in order, and each click's place among its user's clicks.

    Args:
        clicks: (U, K) bool.
    Returns:
        rows, ranks and order, each (n,) int.
    """
    rows, ranks = np.nonzero(clicks)
    order = clicks.cumsum(axis=1)[rows, ranks] - 1
    return rows, ranks, order
