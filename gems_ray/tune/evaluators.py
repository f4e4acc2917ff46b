"""Processes that play the policies of a pack, so that its training goes on meanwhile."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from itertools import cycle
from typing import Any

import ray

from gems_ray.algorithms import AlgorithmClass, register
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.evaluation.record import Evaluation
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.spec import EvaluationSpec
from gems_ray.flat_state import FlatState
from gems_ray.processor import compute_with
from gems_ray.world.bundle import World


class PolicyEvaluator:
    """Plays policies on one CPU.

    Args:
        pack: what is trained, for Ray's dashboard.
        world: simulator.
        users: how many judge a policy, by the purpose of the evaluation.
        algorithms: from outside the package.
    """

    def __init__(self, pack: str, world: World, users: Mapping[str, int], algorithms: Sequence[AlgorithmClass]) -> None:
        compute_with(1)
        self._pack = pack
        for algorithm in algorithms:
            register(algorithm)
        self._evaluators = {purpose: Evaluator(world, purpose, number) for purpose, number in users.items() if number}

    def __repr__(self) -> str:
        """What the dashboard shows."""
        return f"evaluates {self._pack}"

    def evaluate(self, description: Mapping[str, Any], tensors: FlatState, purpose: str) -> Evaluation:
        """What the users make of a learned policy."""
        return self._evaluators[purpose].evaluate(LearnedPolicy.restore(description, tensors))


class Evaluators:
    """Actors of Ray that take turns; they end when nothing refers to this object any more.

    Args:
        number: how many, each on one CPU.
        pack: what is trained, for Ray's dashboard.
        world: that the policies are played in.
        evaluation: the numbers of users.
        algorithms: from outside the package.
    """

    def __init__(
        self,
        number: int,
        pack: str,
        world: World,
        evaluation: EvaluationSpec,
        algorithms: Sequence[AlgorithmClass],
    ) -> None:
        users = {"validation": evaluation.validation_users, "test": evaluation.test_users}
        actor, shared = ray.remote(num_cpus=1)(PolicyEvaluator), ray.put(world)
        self._actors = [actor.remote(pack, shared, users, algorithms) for _ in range(number)]
        self._turns = cycle(self._actors)

    def __call__(self, description: Mapping[str, Any], tensors: FlatState, purpose: str) -> Future[Evaluation]:
        """Lets the next actor evaluate a policy, after those that it was given before."""
        future: Future[Evaluation] = next(self._turns).evaluate.remote(description, tensors, purpose).future()
        return future
