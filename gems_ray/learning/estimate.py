"""What a cell will cost: time from a short measurement, disk from its tensors."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from gems_ray.algorithms import make_algorithm
from gems_ray.data.sampling import make_sampler
from gems_ray.data.schema import ACTION_DIM, STATE_DIM, Dataset
from gems_ray.device import matmul_precision, wait_for
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.spec import EvaluationSpec, TrainingSpec
from gems_ray.flat_state import flatten_modules
from gems_ray.learning.engine import make_engine
from gems_ray.learning.trainer import evaluation_points, resolve_device
from gems_ray.world.bundle import World

MEASUREMENTS, MEASURED_SECONDS = 6, 0.25  # short ones, of which the best counts: other work of the machine is not ours
PROBE_ROWS = 4_096
EVALUATIONS = 2
NEVER = 10**9  # updates
START_SECONDS = 5.0  # of a worker process: Python, torch, the dataset


@dataclass(frozen=True, slots=True)
class Estimate:
    """The cost of one cell on this machine."""

    engine: str  # with which this was measured; a longer run may compile its updates
    updates_per_second: float  # the best of several short measurements
    slowest: float  # of them, updates per second: far below the best on a busy machine
    seconds: float
    disk_bytes: int


def estimate(
    algorithm: str, settings: Mapping[str, Any], training: TrainingSpec, evaluation: EvaluationSpec, world: World | None
) -> Estimate:
    """Measures updates on random transitions and one evaluation for a moment, and adds up.

    Args:
        algorithm: its name.
        settings: that differ from its defaults.
        training: length and evaluations.
        evaluation: numbers of users.
        world: in which policies are evaluated; None without returns.
    """
    learner = make_algorithm(algorithm, STATE_DIM, ACTION_DIM, dict(settings), resolve_device(training.device), 0)
    rng = np.random.default_rng(0)
    dataset = Dataset(
        observations=rng.normal(size=(PROBE_ROWS, STATE_DIM)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(PROBE_ROWS, ACTION_DIM)).astype(np.float32),
        rewards=rng.uniform(0, 10, size=PROBE_ROWS).astype(np.float32),
        next_observations=rng.normal(size=(PROBE_ROWS, STATE_DIM)).astype(np.float32),
        terminals=np.arange(PROBE_ROWS) % 100 == 99,
    )
    config = learner.config
    sampler = make_sampler(
        learner.experience,
        dataset,
        seed=0,
        device=learner.device,
        normalize_states=config.normalize_states,
        reward_scale=config.reward_scale,
        bootstrap_time_limit=config.bootstrap_time_limit,
    )
    learner.prepare(dataset.rewards, dataset.terminals, sampler.reward_factor)
    mode = _without_compiler(training.compile, learner.device)
    engine = make_engine(learner, sampler, mode, updates=0)  # so few that `auto` does not compile
    speeds = []
    with matmul_precision(learner.device, training.matmul_precision):
        engine.run(learner.period + 1, lambda: False)  # the first ones set up more than they compute
        for _ in range(MEASUREMENTS):
            wait_for(learner.device)
            start, before = time.perf_counter(), learner.updates
            engine.run(NEVER, partial(_is_past, start + MEASURED_SECONDS))
            wait_for(learner.device)
            speeds.append((learner.updates - before) / (time.perf_counter() - start))
    speed = max(speeds)

    seconds = START_SECONDS + training.max_timesteps / speed
    if world:
        evaluator = Evaluator(world, "validation", evaluation.validation_users)
        learned = learner.policy(sampler.normalizer)
        times = []
        for _ in range(EVALUATIONS):
            start = time.perf_counter()
            evaluator.evaluate(learned)
            times.append(time.perf_counter() - start)
        per_user = min(times) / evaluation.validation_users
        evaluations = len(evaluation_points(training.max_timesteps, training.evaluation_interval))
        seconds += per_user * (evaluations * evaluation.validation_users + 2 * evaluation.test_users)
    whole = sum(tensor.nbytes for tensor in learner.state_dict().values())
    policy = sum(tensor.nbytes for tensor in flatten_modules(learner.networks).values())
    return Estimate(engine.name, speed, min(speeds), seconds, whole + policy)


def _without_compiler(mode: str, device: torch.device) -> str:
    """The nearest mode that need not compile for a minute before it can be measured, and fails only where the run does.

    Args:
        mode: of the run.
        device: on which it trains.
    """
    if device.type != "cuda" or mode == "off":
        return "off"
    return "graph" if mode == "graph" else "auto"


def _is_past(moment: float) -> bool:
    return time.perf_counter() > moment
