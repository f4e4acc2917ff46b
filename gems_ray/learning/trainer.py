"""The training loop: updates from one dataset, a report at every evaluation."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gems_ray import metrics
from gems_ray.algorithms import ALGORITHMS, Algorithm, make_algorithm
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.data.replay import ReplayBuffer
from gems_ray.errors import DeviceError, GemsRayError
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.spec import TrainingSpec
from gems_ray.flat_state import FlatState
from gems_ray.learning.diagnostics import Diagnostics, DivergenceWatch, value_bound
from gems_ray.learning.engine import make_engine
from gems_ray.learning.memory import out_of_memory_message

# Policies on this data change most within the first updates, so these are always looked at.
EARLY_EVALUATIONS = (0, 50, 100, 250, 500, 1_000)

Report = dict[str, float]


class TrainingError(GemsRayError):
    """The training itself went wrong, for example a loss that is not finite."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """One dataset as the training sees it.

    Args:
        arrays: the five required arrays of the dataset format.
        action_center: (Z,) float32, middle of the action box.
        action_scale: (Z,) float32, half its width.
        fingerprint: of the dataset.
        world_fingerprint: of the world that it was collected in; None for foreign files.
    """

    arrays: Mapping[str, np.ndarray]
    action_center: np.ndarray
    action_scale: np.ndarray
    fingerprint: str
    world_fingerprint: str | None


class Trainer:
    """One algorithm on one dataset, from the first update to the last.

    Args:
        data: dataset.
        algorithm: name of the algorithm.
        settings: its settings that differ from the defaults.
        seed: experiment seed.
        training: length, evaluations, device and more.
        evaluator: validation users; None where the dataset has no world.
        rows: (n,) int64, ascending, the only transitions that are trained on; None for all.
        warn: told what does not stop the training, yet should be known.
    """

    def __init__(
        self,
        data: TrainingData,
        algorithm: str,
        settings: Mapping[str, Any],
        seed: int,
        training: TrainingSpec,
        evaluator: Evaluator | None,
        rows: np.ndarray | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        device, max_timesteps = resolve_device(training.device), training.max_timesteps
        state_dim, action_dim = data.arrays["observations"].shape[1], data.arrays["actions"].shape[1]
        if "max_timesteps" in ALGORITHMS[algorithm].Config.model_fields:  # a schedule over the whole run
            settings = {"max_timesteps": max_timesteps, **settings}
        self.algorithm: Algorithm = make_algorithm(algorithm, state_dim, action_dim, settings, device, seed)
        config = self.algorithm.config
        rewards, terminals = data.arrays["rewards"], data.arrays["terminals"]
        self.buffer = ReplayBuffer(
            state_dim,
            action_dim,
            len(rewards),
            device,
            seed=seed,
            normalize_states=config.normalize_states,
            action_center=data.action_center,
            action_scale=data.action_scale,
            reward_scale=config.reward_scale,
            bootstrap_time_limit=config.bootstrap_time_limit,
        )
        kept = slice(None) if rows is None else rows
        selected = self.algorithm.select_rows(rewards[kept], terminals[kept])
        if selected is not None:
            rows = selected if rows is None else rows[selected]
        self.buffer.load_d4rl_dataset(data.arrays, rows)
        bound = self.buffer.reward_factor * value_bound(
            rewards, terminals, config.discount, config.bootstrap_time_limit
        )
        self._diagnostics = Diagnostics(self.buffer, bound, action_dim)
        largest = self.buffer.reward_factor * float(np.abs(rewards).max())
        self._watch = DivergenceWatch(training.divergence, largest or 1.0)
        self._engine = make_engine(self.algorithm, self.buffer, training.compile, max_timesteps, warn)
        self._evaluator = evaluator
        self._points = evaluation_points(max_timesteps, training.evaluation_interval)
        self._max_timesteps = max_timesteps
        self._seconds = 0.0
        self.reported = -1  # updates at the last report
        self.best_return = -np.inf
        self.best_updates = -1
        self.last_report: Report = {}

    @property
    def diverged(self) -> bool:
        """Whether Q-values have left what the rewards can pay."""
        return self._watch.diverged

    @property
    def finished(self) -> bool:
        """Whether the last report has been made."""
        return self.reported >= self._max_timesteps

    def advance(self, stop: Callable[[], bool] = lambda: False) -> Report | None:
        """Trains up to the next evaluation.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            the report, or None when stopped before the evaluation was due.
        Raises:
            TrainingError: a loss is not finite, or the GPU's memory is exhausted.
        """
        point = next(point for point in self._points if point > self.reported)
        start = time.perf_counter()
        exhausted = False
        try:
            self._engine.run(point, stop)
        except torch.OutOfMemoryError:
            exhausted = True  # what the failed update held is free once its traceback is gone
        if exhausted:
            raise TrainingError(out_of_memory_message(self.algorithm, self.buffer))
        self._seconds += time.perf_counter() - start
        if self.algorithm.updates < point:
            return None
        report = self._report()
        self.reported = point
        self.last_report = report
        return report

    def policy(self) -> LearnedPolicy:
        """What has been learned so far; training that goes on changes it."""
        return LearnedPolicy(self.algorithm, self.buffer.normalizer)

    def improved(self, report: Report) -> bool:
        """Whether the report is of a new best policy; remembers it if so."""
        value = report.get(metrics.RETURN_MEAN)
        if value is not None and value <= self.best_return:
            return False
        if value is not None:
            self.best_return = value
        self.best_updates = int(report[metrics.STEP])
        return True

    def state_dict(self) -> tuple[FlatState, dict[str, Any]]:
        """Tensors and plain facts that `load_state_dict` needs to continue exactly."""
        tensors = {
            **{f"algorithm.{key}": value for key, value in self.algorithm.state_dict().items()},
            **{f"buffer.{key}": value for key, value in self.buffer.state_dict().items()},
            **{f"losses.{key}": value for key, value in self._engine.losses.state_dict().items()},
        }
        facts = {
            "updates": self.algorithm.updates,
            "reported": self.reported,
            "best_return": self.best_return if np.isfinite(self.best_return) else None,
            "best_updates": self.best_updates,
            "seconds": self._seconds,
            "reports_above_bound": self._watch.in_a_row,
            "diverged": self.diverged,
            # JSON has neither NaN nor infinity; their names are read back by float.
            "last_report": {
                key: value if np.isfinite(value) else str(value) for key, value in self.last_report.items()
            },
        }
        return tensors, facts

    def load_state_dict(self, tensors: FlatState, facts: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        parts: dict[str, FlatState] = {"algorithm": {}, "buffer": {}, "losses": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        self.algorithm.load_state_dict(parts["algorithm"])
        self.buffer.load_state_dict(parts["buffer"])
        self._engine.losses.load_state_dict(parts["losses"])
        self.reported, self.best_updates = facts["reported"], facts["best_updates"]
        self.best_return = -np.inf if facts["best_return"] is None else facts["best_return"]
        self._watch.in_a_row, self._watch.diverged = facts["reports_above_bound"], facts["diverged"]
        self._seconds = facts["seconds"]
        report = facts["last_report"].items()
        self.last_report = {key: float(value) if isinstance(value, str) else value for key, value in report}

    def _report(self) -> Report:
        losses = self._engine.losses.take()
        updates = self.algorithm.updates
        if updates and not all(np.isfinite(value) for value in losses.values() if value is not None):
            shown = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise TrainingError(
                f"after {updates} updates a loss is not finite ({shown}). "
                "Try a smaller learning_rate or alpha, or look at the dataset's rewards."
            )
        values = self._diagnostics(self.algorithm)
        self._watch.look(values)
        evaluation = self._evaluator.evaluate(self.policy()) if self._evaluator else None
        return {
            metrics.STEP: updates,
            metrics.SECONDS: round(self._seconds, 3),
            metrics.UPDATES_PER_SECOND: round(updates / self._seconds, 1) if self._seconds else 0.0,
            **{metrics.train(name): np.nan if value is None else value for name, value in losses.items()},
            **values,
            **(evaluation.as_metrics() if evaluation else {}),
        }


def evaluation_points(max_timesteps: int, interval: int) -> list[int]:
    """Updates after which the policy is evaluated: early ones, then every interval, and the last."""
    early = [point for point in EARLY_EVALUATIONS if point < max_timesteps]
    return sorted({*early, *range(interval, max_timesteps, interval), max_timesteps})


def resolve_device(name: str) -> str:
    """Cpu or cuda for auto, cpu or cuda.

    Raises:
        DeviceError: cuda was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device cuda: torch finds no CUDA device on this machine. Use --device auto or cpu.")
    return ("cuda" if available else "cpu") if name == "auto" else name
