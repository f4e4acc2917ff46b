"""Evidence on the learnt values: where Q stands, what the rewards can pay at most, when the two have parted."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from gems_ray import metrics
from gems_ray.algorithms.base import AnyAlgorithm
from gems_ray.data.experience import Batch, WindowBatch
from gems_ray.data.sampler import Sampler
from gems_ray.data.trajectories import returns_to_go, trajectory_ends
from gems_ray.experiments.spec import Divergence
from gems_ray.rng import stream

PROBE_STEPS = 2_048


class Diagnostics:
    """Looks at an algorithm on a fixed sample of its dataset.

    Args:
        sampler: normalised experience.
        bound: what no honest Q passes, in the sampler's reward units.
        action_dim: Z.
    """

    def __init__(self, sampler: Sampler[Any], bound: float, action_dim: int) -> None:
        rng = stream(0, "diagnostics")
        count = min(PROBE_STEPS // sampler.steps_per_row, len(sampler))
        rows = torch.from_numpy(rng.integers(len(sampler), size=max(1, count)))
        self._probe = sampler.rows(rows.to(sampler.device))
        uniform = rng.uniform(-1, 1, size=(len(rows), action_dim)).astype(np.float32)
        self._random_actions = torch.from_numpy(uniform).to(sampler.device)
        self._bound = bound

    @torch.no_grad()
    def __call__(self, algorithm: AnyAlgorithm) -> dict[str, float]:
        """Cloning error, gradient norms, what the algorithm and its critic tell; NaN where nothing was learnt yet."""
        probe = self._probe
        chosen = algorithm.predict(probe)
        report = {metrics.CLONING_ERROR: float(cloning_error(chosen, probe))}
        for name, optimizer in algorithm.optimizers.items():
            norm = optimizer.gradient_norm()
            report[metrics.gradient_norm(name)] = np.nan if norm is None else float(norm)
        return report | self._values(algorithm, chosen) | self._further(algorithm)

    def _values(self, algorithm: AnyAlgorithm, chosen: Tensor) -> dict[str, float]:
        """Where Q stands; empty for an algorithm without a critic."""
        probe = self._probe
        if not isinstance(probe, Batch):
            return {}
        at_policy = algorithm.q_values(probe.states, chosen)
        at_dataset = algorithm.q_values(probe.states, probe.actions)
        at_random = algorithm.q_values(probe.states, self._random_actions)
        following = algorithm.next_values(probe.next_states)
        if at_policy is None or at_dataset is None or at_random is None or following is None:
            return {}
        target = probe.rewards[:, 0] + algorithm.config.discount * (1 - probe.dones[:, 0]) * following
        return {
            metrics.Q_DATASET: float(at_dataset.mean()),
            metrics.Q_POLICY: float(at_policy.mean()),
            metrics.Q_RANDOM: float(at_random.mean()),
            metrics.Q_BOUND: self._bound,
            metrics.Q_ABOVE_BOUND: float((at_policy > self._bound).float().mean()),
            metrics.TD_ERROR: float((at_dataset - target).abs().mean()),
        }

    def _further(self, algorithm: AnyAlgorithm) -> dict[str, float]:
        """What the algorithm itself has to tell."""
        return {metrics.train(name): float(value) for name, value in algorithm.diagnose(self._probe).items()}


def cloning_error(chosen: Tensor, batch: Batch | WindowBatch) -> Tensor:
    """Mean squared distance of chosen and logged actions, in normalised units; steps after an episode do not count."""
    errors = (chosen - batch.actions).square()
    return errors.mean() if isinstance(batch, Batch) else errors[batch.mask].mean()


class DivergenceWatch:
    """Follows the reports of one run.

    Args:
        rule: when its values count as diverged.
        unit: largest absolute reward, in the buffer's units: what a bound at or below zero is measured by.
    """

    def __init__(self, rule: Divergence, unit: float) -> None:
        self._rule = rule
        self._unit = unit
        self.in_a_row = 0
        self.diverged = False

    def update(self, report: dict[str, float]) -> None:
        """Takes note of a report; what has diverged once stays so."""
        if metrics.Q_BOUND not in report:
            return
        bound = report[metrics.Q_BOUND]
        limit = bound + (self._rule.factor - 1) * max(
            abs(bound), self._unit
        )  # the factor's multiple of rewards above 0
        beyond = max(report[metrics.Q_POLICY], report[metrics.Q_DATASET]) > limit
        self.in_a_row = self.in_a_row + 1 if beyond else 0
        self.diverged = self.diverged or self.in_a_row >= self._rule.reports


def value_bound(rewards: np.ndarray, last: np.ndarray, discount: float, bootstrap: bool) -> float:
    """What no honest value passes.

    Args:
        rewards: (N,) float.
        last: (N,) bool, last step of an episode.
        discount: weight of the next step.
        bootstrap: whether values go on beyond the end of an episode.
    Returns:
        the highest discounted return-to-go of the dataset; with bootstrapping, the highest reward for ever.
    """
    if bootstrap:
        return float(rewards.max()) / (1 - discount) if discount < 1 else np.inf
    return float(returns_to_go(rewards, trajectory_ends(last), discount).max())
