"""Evaluation in the simulator, on users that are the same for every policy."""

import numpy as np

from gems_ray.envs.rollout import SlateEpisodes, play
from gems_ray.evaluation.record import Evaluation
from gems_ray.policies.base import Policy
from gems_ray.policies.latents import MeanAgent
from gems_ray.policies.slates import SlatePolicy
from gems_ray.rng import stream
from gems_ray.simulator import TopicRec
from gems_ray.simulator.items import topic_norms
from gems_ray.world.bundle import World

EVALUATION_SEED = 2023  # one fixed set of users per purpose, whatever the experiment's seed


class Evaluator:
    """Plays policies against one fixed set of users of a world.

    Args:
        world: simulator, decoder and belief.
        purpose: `validation` users choose among policies, `test` users make the tables; no two purposes share users.
        users: U.
        seed: of the users; the same for all tables unless given.
    """

    def __init__(self, world: World, purpose: str, users: int, seed: int = EVALUATION_SEED) -> None:
        self._world = world
        self._purpose = purpose
        self._users = users
        self._seed = seed
        self._item_topics = topic_norms(world.environment, world.items).argmax(axis=1)

    def evaluate(self, policy: Policy) -> Evaluation:
        """Plays one episode with every user; a policy that draws random numbers is reseeded, so that they are fixed."""
        policy.reseed(stream(self._seed, "eval", self._purpose, "slates"))
        return self._summarise(play(self._world, self._simulator(), policy))

    def references(self) -> dict[str, Evaluation]:
        """Random slates, the short-term oracle and the behaviour agent (mean actions), if any, on the same users."""
        environment = self._world.environment
        policies: dict[str, Policy] = {
            "random": SlatePolicy("random", environment),
            "oracle": SlatePolicy("oracle", environment),
        }
        if "expert" in self._world.agents:
            policies["behavior"] = MeanAgent(self._world.expert)
        return {name: self.evaluate(policy) for name, policy in policies.items()}

    def _simulator(self) -> TopicRec:
        rng = stream(self._seed, "eval", self._purpose)
        return TopicRec(self._world.environment, self._world.items, users=self._users, seed=rng)

    def _summarise(self, episodes: SlateEpisodes) -> Evaluation:
        environment = self._world.environment
        shown = episodes.slates[:, 1:]
        returns = episodes.rewards.sum(axis=1, dtype=np.float64)
        deviation = returns.std(ddof=1) if len(returns) > 1 else 0.0
        topics = np.bincount(self._item_topics[shown].ravel(), minlength=environment.num_topics)
        # A slate as one opaque value of all its bytes: unique rows by sorting memory, not columns.
        rows = np.ascontiguousarray(shown).view(np.dtype((np.void, shown.shape[2] * shown.itemsize)))[:, :, 0]
        slates, numbers = np.unique(rows, return_inverse=True)
        return Evaluation(
            return_mean=float(returns.mean()),
            return_se=float(deviation / np.sqrt(len(returns))),
            return_per_step=float(returns.mean() / episodes.rewards.shape[1]),
            distinct_items_per_slate=float(_distinct_per_row(shown.reshape(-1, shown.shape[2])).mean()),
            distinct_slates=len(slates),
            repeated_slates=float(1 - _distinct_per_row(numbers.reshape(rows.shape)).mean() / rows.shape[1]),
            catalogue_coverage=len(np.unique(shown)) / environment.num_items,
            topic_entropy=_entropy_in_bits(topics),
            bored_topics=float(episodes.bored_topics.mean()),
            users=len(returns),
        )


def _distinct_per_row(values: np.ndarray) -> np.ndarray:
    """How many different values each row holds: (n, m) -> (n,)."""
    ordered = np.sort(values, axis=1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)


def _entropy_in_bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
