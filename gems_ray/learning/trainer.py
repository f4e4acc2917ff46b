"""The training loop: updates from one dataset, a report at every evaluation."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gems_ray import metrics
from gems_ray.algorithms import ALGORITHMS, make_algorithm
from gems_ray.algorithms.base import AnyAlgorithm
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.config import validate
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import Dataset
from gems_ray.data.trajectories import last_steps
from gems_ray.device import indexed, matmul_precision, wait_for
from gems_ray.errors import DeviceError, TrainingError
from gems_ray.evaluation.belonging import check_world
from gems_ray.evaluation.record import Evaluation
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.spec import EvaluationSpec, TrainingSpec
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.learning.diagnostics import Diagnostics, DivergenceWatch, value_bound
from gems_ray.learning.engine import Engine, make_engine
from gems_ray.learning.losses import LossMeans
from gems_ray.learning.memory import out_of_memory_message
from gems_ray.policies.base import Policy
from gems_ray.world.bundle import World

# Policies on this data change most within the first updates, so these are always looked at.
EARLY_EVALUATIONS = (0, 50, 100, 250, 500, 1_000)

Report = dict[str, float]


@dataclass(frozen=True, slots=True)
class OpenReport:
    """A report that still lacks the returns in the simulator, because training goes on while its policy is played.

    Args:
        values: what was measured in the training.
        policy: its tensors at that moment.
    """

    values: Report
    policy: FlatState

    @property
    def updates(self) -> int:
        """Gradient updates at the report."""
        return int(self.values[metrics.STEP])


class Trainer:
    """One algorithm on one dataset, from the first update to the last.

        for report in Trainer(dataset, "iql", {"beta": 3.0}, max_timesteps=10_000, world=world):
            print(report["updates"], report["eval/return_mean"])

    Args:
        dataset: logged transitions.
        algorithm: name of the algorithm, or the import path `package.module:Class` of one.
        settings: of the algorithm that differ from its defaults.
        seed: experiment seed: initial weights, batches, noise.
        max_timesteps: gradient updates.
        world: that the dataset was collected in; None trains without returns in the simulator.
        evaluation_interval: updates between reports; the first 1,000 updates are reported more often.
        validation_users: simulated users of every evaluation.
        device: auto, cpu or cuda.
        compile: auto, on, graph or off: whether updates are compiled, or captured as CUDA graphs.
        training: all of this as an experiment file spells it, in place of `max_timesteps`, `evaluation_interval`,
            `device` and `compile`.
        rows: (n,) int64, ascending, the only transitions that are trained on; None for all.
        warn: told what does not stop the training, yet should be known.
    Raises:
        ConfigError: the algorithm or a setting does not exist.
        WorldError: the dataset was collected in another world.
        DatasetError: a world is given, and the dataset does not say in which one it was collected.
        DeviceError: the device is not here.
    """

    def __init__(
        self,
        dataset: Dataset,
        algorithm: str = "td3_bc",
        settings: Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        max_timesteps: int = TrainingSpec().max_timesteps,
        world: World | None = None,
        evaluation_interval: int = TrainingSpec().evaluation_interval,
        validation_users: int = EvaluationSpec().validation_users,
        device: str = "auto",
        compile: str = "auto",  # noqa: A002 - the name of the field in experiment files
        training: TrainingSpec | None = None,
        rows: np.ndarray | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        if training is None:
            given = {"max_timesteps": max_timesteps, "evaluation_interval": evaluation_interval}
            training = validate({**given, "device": device, "compile": compile}, TrainingSpec)
        if world is not None:
            check_world(dataset, world)
        self.max_timesteps = training.max_timesteps
        self.algorithm = _make_algorithm(algorithm, settings or {}, seed, training, dataset)
        last = last_steps(dataset.arrays)
        kept = slice(None) if rows is None else rows
        selected = self.algorithm.select_rows(dataset.rewards[kept], last[kept])
        if selected is not None:
            rows = selected if rows is None else rows[selected]
        config = self.algorithm.config
        self.sampler = make_sampler(
            self.algorithm.experience,
            dataset,
            rows,
            seed=seed,
            device=self.algorithm.device,
            normalize_states=config.normalize_states,
            reward_scale=config.reward_scale,
            bootstrap_time_limit=config.bootstrap_time_limit,
        )
        factor = self.sampler.reward_factor
        self.algorithm.prepare(dataset.rewards[kept], last[kept], factor)
        goes_on = config.bootstrap_time_limit or (last & ~dataset.terminals).any()
        bound = factor * value_bound(dataset.rewards, last, config.discount, bool(goes_on))
        self._diagnostics = Diagnostics(self.sampler, bound, self.algorithm.action_dim)
        largest = factor * float(np.abs(dataset.rewards).max())
        self._watch = DivergenceWatch(training.divergence, largest or 1.0)
        self._make_engine = partial(
            make_engine, self.algorithm, self.sampler, training.compile, self.max_timesteps, warn
        )
        self.engine = self._make_engine()
        # What has been learned so far; it shares the networks, so training goes on changing it.
        self.live_policy: LearnedPolicy[Any] = self.algorithm.policy(self.sampler.normalizer)
        self._evaluator = Evaluator(world, "validation", validation_users) if world else None
        self.points = evaluation_points(self.max_timesteps, training.evaluation_interval)  # updates at the reports
        self.matmul_precision, self.compile, self.warn = training.matmul_precision, training.compile, warn
        self.seconds = 0.0  # that updates have taken
        self._finite: FlatState = {}  # networks of the last finite report, once the values have diverged
        self.reported = -1  # updates at the last report
        self.open_report: OpenReport | None = None
        self.broken_off = ""  # why training ended before its time
        self.best_return = -np.inf
        self.best_updates = -1
        self.last_report: Report = {}

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        return self.algorithm.updates

    @property
    def diverged(self) -> bool:
        """Whether Q-values have left what the rewards can pay."""
        return self._watch.diverged

    @property
    def finished(self) -> bool:
        """Whether the last report has been made."""
        return self.reported >= self.max_timesteps or bool(self.broken_off)

    @property
    def trained(self) -> bool:
        """Whether the last update has been made; the last report may still be open."""
        return self.begun >= self.max_timesteps or bool(self.broken_off)

    @property
    def begun(self) -> int:
        """Updates at the last report, be it open or not."""
        return self.open_report.updates if self.open_report else self.reported

    @property
    def improved(self) -> bool:
        """Whether the last report is of the best policy so far, by the validation users; without them, always."""
        return self.best_updates == self.reported

    @property
    def next_point(self) -> int:
        """Updates at the next report."""
        return next(point for point in self.points if point > self.begun)

    @property
    def losses(self) -> LossMeans:
        """Means of the losses since the last report."""
        return self.engine.losses

    def use_engine(self, engine: Engine | None) -> None:
        """Lets another engine run the updates from here on; None for one of its own."""
        former, self.engine = self.engine, engine or self._make_engine()
        self.engine.losses = former.losses
        if self.finished:
            self.engine.name = former.name  # reports say how it was trained

    def __iter__(self) -> Iterator[Report]:
        """Trains to the end; yields a report at every evaluation."""
        while not self.finished:
            report = self.advance()
            if report is not None:
                yield report

    def advance(self, stop: Callable[[], bool] = lambda: False) -> Report | None:
        """Trains up to the next evaluation.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            the report; None when stopped before the evaluation was due, or when diverged values ended the training.
        Raises:
            TrainingError: a loss is not finite, or the GPU's memory is exhausted.
        """
        if self.open_report:
            return self.end_report(self._evaluate(self._policy_of(self.open_report)))
        if not self.train(stop):
            return None
        values = self._measure()
        return None if values is None else self._end_report(values, self._evaluate(self.live_policy))

    def train(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Runs the updates up to the next report, and leaves the report to `begin_report` or `advance`.

        Returns:
            whether the report is due; false when stopped before it.
        Raises:
            TrainingError: the GPU's memory is exhausted.
        """
        point = self.next_point
        start = time.perf_counter()
        exhausted = False
        try:
            with matmul_precision(self.algorithm.device, self.matmul_precision):
                self.engine.run(point, stop)
            wait_for(self.algorithm.device)  # else the clock tells how long it took to ask
        except torch.OutOfMemoryError:
            exhausted = True  # what the failed update held is free once its traceback is gone
        if exhausted:
            raise TrainingError(out_of_memory_message(self.algorithm, self.sampler))
        self.seconds += time.perf_counter() - start
        return self.updates >= point

    def begin_report(self) -> OpenReport | None:
        """Measures what is due, and keeps the policy of this moment to be evaluated while training goes on.

        Returns:
            what `end_report` needs an evaluation of; None where diverged values have ended the training.
        Raises:
            TrainingError: a loss is not finite.
        """
        values = self._measure()
        self.open_report = None if values is None else OpenReport(values, self.live_policy.tensors())
        return self.open_report

    def end_report(self, evaluation: Evaluation | None) -> Report:
        """Makes the open report complete.

        Args:
            evaluation: of its policy; None without a world.
        """
        assert self.open_report is not None
        values, self.open_report = self.open_report.values, None
        return self._end_report(values, evaluation)

    def policy(self) -> Policy:
        """What has been learned so far, with networks of its own: training that goes on does not change it."""
        return self.live_policy.copy()

    def state_dict(self) -> tuple[FlatState, dict[str, Any]]:
        """Tensors and plain facts that `load_state_dict` needs to continue exactly."""
        tensors = {
            **{f"algorithm.{key}": value for key, value in self.algorithm.state_dict().items()},
            **{f"buffer.{key}": value for key, value in self.sampler.state_dict().items()},
            **{f"losses.{key}": value for key, value in self.engine.losses.state_dict().items()},
            **{f"finite.{key}": value for key, value in self._finite.items()},
            **{f"open.{key}": value for key, value in (self.open_report.policy if self.open_report else {}).items()},
        }
        facts = {
            "updates": self.updates,
            "reported": self.reported,
            "best_return": self.best_return if np.isfinite(self.best_return) else None,
            "best_updates": self.best_updates,
            "seconds": self.seconds,
            "reports_above_bound": self._watch.in_a_row,
            "diverged": self.diverged,
            "broken_off": self.broken_off,
            "last_report": _as_json(self.last_report),
            "open_report": _as_json(self.open_report.values) if self.open_report else None,
        }
        return tensors, facts

    def load_state_dict(self, tensors: FlatState, facts: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken."""
        parts: dict[str, FlatState] = {"algorithm": {}, "buffer": {}, "losses": {}, "finite": {}, "open": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        self.algorithm.load_state_dict(parts["algorithm"])
        self.sampler.load_state_dict(parts["buffer"])
        self.engine.losses.load_state_dict(parts["losses"])
        self._finite = parts["finite"]
        self.reported, self.best_updates = facts["reported"], facts["best_updates"]
        self.broken_off = facts.get("broken_off", "")  # missing in checkpoints from before there was such an end
        self.best_return = -np.inf if facts["best_return"] is None else facts["best_return"]
        self._watch.in_a_row, self._watch.diverged = facts["reports_above_bound"], facts["diverged"]
        self.seconds = facts["seconds"]
        self.last_report = _from_json(facts["last_report"])
        values = facts.get("open_report")  # missing in checkpoints from before a report could be open
        self.open_report = OpenReport(_from_json(values), parts["open"]) if values else None

    def _measure(self) -> Report | None:
        """The report of this moment without returns; None where diverged values have ended the training."""
        losses = self.engine.losses.take()
        updates = self.updates
        if updates and not all(np.isfinite(value) for value in losses.values() if value is not None):
            shown = ", ".join(f"{name} {value}" for name, value in losses.items())
            if not self.diverged:
                raise TrainingError(
                    f"after {updates} updates a loss is not finite ({shown}). "
                    "Try a smaller learning_rate or alpha, or look at the dataset's rewards."
                )
            load_modules(self.algorithm.networks, self._finite)
            self.broken_off = (
                f"after {updates} updates a loss is not finite ({shown}); the policy after {self.reported} updates, "
                "of the last report, stands for the whole training"
            )
            return None
        values = self._diagnostics(self.algorithm)
        self._watch.update(values)
        if self.diverged:
            self._finite = flatten_modules(self.algorithm.networks)
        return {
            metrics.STEP: updates,
            metrics.SECONDS: round(self.seconds, 3),
            metrics.UPDATES_PER_SECOND: round(updates / self.seconds, 1) if self.seconds else 0.0,
            **{metrics.train(name): np.nan if value is None else value for name, value in losses.items()},
            **values,
        }

    def _evaluate(self, policy: Policy) -> Evaluation | None:
        return self._evaluator.evaluate(policy) if self._evaluator else None

    def _policy_of(self, report: OpenReport) -> Policy:
        live = self.live_policy
        return live.restore(live.describe(), report.policy, self.algorithm.device)

    def _end_report(self, values: Report, evaluation: Evaluation | None) -> Report:
        report = {**values, **(evaluation.as_metrics() if evaluation else {})}
        self.reported = int(report[metrics.STEP])
        self.last_report = report
        self._remember_best(report)
        return report

    def _remember_best(self, report: Report) -> None:
        """Takes note of a report of the best policy so far; without validation users the last one counts."""
        value = report.get(metrics.RETURN_MEAN)
        if value is None or value > self.best_return:
            self.best_updates = int(report[metrics.STEP])
        if value is not None:
            self.best_return = report[metrics.BEST_RETURN] = max(self.best_return, value)


def _as_json(report: Report) -> dict[str, float | str]:
    """JSON has neither NaN nor infinity; their names are read back by float."""
    return {key: value if np.isfinite(value) else str(value) for key, value in report.items()}


def _from_json(report: Mapping[str, float | str]) -> Report:
    return {key: float(value) if isinstance(value, str) else value for key, value in report.items()}


def _make_algorithm(
    name: str, settings: Mapping[str, Any], seed: int, training: TrainingSpec, dataset: Dataset
) -> AnyAlgorithm:
    """The algorithm of a training, with its schedules over the whole of it."""
    sizes = dataset.observations.shape[1], dataset.actions.shape[1]
    if "max_timesteps" in ALGORITHMS[name].Config.model_fields:
        settings = {"max_timesteps": training.max_timesteps, **settings}
    return make_algorithm(name, *sizes, settings, resolve_device(training.device), seed)


def evaluation_points(max_timesteps: int, interval: int) -> list[int]:
    """Updates after which the policy is evaluated: early ones, then every interval, and the last."""
    early = [point for point in EARLY_EVALUATIONS if point < max_timesteps]
    return sorted({*early, *range(interval, max_timesteps, interval), max_timesteps})


def resolve_device(name: str) -> str:
    """The device for auto, cpu or cuda; a GPU with its number, such as cuda:0.

    Raises:
        DeviceError: cuda was asked for and is not there.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise DeviceError("device cuda: torch finds no CUDA device on this machine. Use --device auto or cpu.")
    return str(indexed(("cuda" if available else "cpu") if name == "auto" else name))
