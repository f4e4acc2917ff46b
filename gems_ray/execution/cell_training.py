"""One cell: trained up to its last report, then tested. It writes nothing but the checkpoints that it is asked for."""

import math
import os
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gems_ray import metrics
from gems_ray.checkpoints import read_checkpoint, write_checkpoint
from gems_ray.data.schema import Dataset
from gems_ray.data.trajectories import last_steps
from gems_ray.errors import CheckpointError, WorldError
from gems_ray.evaluation.offline import OfflineEvaluator, hold_out
from gems_ray.evaluation.record import Evaluation, OfflineEvaluation
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.cell_folder import DIVERGED, FINISHED, FORMER_BEST, RUNNING, TRAINER
from gems_ray.experiments.records import CellDescription
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.learning.trainer import Trainer
from gems_ray.policies.base import TENSORS
from gems_ray.world.bundle import World

# What a torn or foreign checkpoint raises while it is read or loaded; RuntimeError: layers of other sizes.
UNREADABLE = (
    CheckpointError,
    SafetensorError,
    FileNotFoundError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    RuntimeError,
)

KINDS = ("last", "best")  # checkpoints that are tested

# Plays a policy elsewhere, from what `Policy.describe` and `Policy.tensors` returned, with users of a purpose.
Evaluate = Callable[[Mapping[str, Any], FlatState, str], Future[Evaluation]]


class CellTraining:
    """Trains a cell and tests it at the end.

    Args:
        cell: what determines it.
        dataset: logged transitions.
        world: that the dataset was collected in; None trains without evaluation in the simulator.
        warn: told what does not stop the training, yet should be known.
    Raises:
        WorldError: the dataset was collected in another world.
    """

    def __init__(
        self,
        cell: CellDescription,
        dataset: Dataset,
        world: World | None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        if world and world.fingerprint != dataset.world_fingerprint:
            raise WorldError(
                f"the dataset was collected in world {dataset.world_fingerprint}, but the world of "
                f"{world.environment.name} is {world.fingerprint} here. Put the same world on every machine that "
                "trains."
            )
        self.cell = cell
        evaluation = cell.evaluation
        rows, self._offline = None, None
        if evaluation.holdout:
            rows, held_out = hold_out(last_steps(dataset.arrays), evaluation.holdout)
        self.trainer = Trainer(
            dataset,
            cell.algorithm,
            cell.settings,
            seed=cell.seed,
            world=world,
            validation_users=evaluation.validation_users,
            training=cell.training,
            rows=rows,
            warn=warn,
        )
        if evaluation.holdout:
            self._offline = OfflineEvaluator(dataset.arrays, held_out, self.trainer.sampler.normalizer)
        self._test = Evaluator(world, "test", evaluation.test_users) if world and evaluation.test_users else None
        self._best: FlatState = {}  # the best policy so far
        self._ended = False
        self._asked: list[Future[Evaluation]] = []  # for evaluations that others make
        self._final: dict[str, Any] = {}  # what the tests after the last report say; NaN until then
        if self._offline:
            self._final |= {metrics.offline(name): math.nan for name in OfflineEvaluation.model_fields}
        if self._test:
            self._final |= {metrics.test(kind, name): math.nan for kind in KINDS for name in Evaluation.model_fields}

    @property
    def ended(self) -> bool:
        """Whether the cell has been trained to the end and tested."""
        return self._ended

    def advance(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains up to the next report; after the last one, tests the policies.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            whether the report is due; false when stopped before it.
        """
        trainer = self.trainer
        if not trainer.finished:  # else the process ended between the last checkpoint and the tests
            former = trainer.open_report
            if trainer.advance(stop) is None and not trainer.broken_off:
                return False
            if trainer.improved:
                self._best = former.policy if former else trainer.live_policy.tensors()
        if trainer.finished:
            self._run_tests()
        return True

    def begin_evaluation(self, evaluate: Evaluate) -> None:
        """Measures what is due and has the policy played elsewhere; after the last report, those that are tested.

        Raises:
            TrainingError: a loss is not finite.
        """
        trainer = self.trainer
        describe = trainer.live_policy.describe
        report = None if trainer.finished else trainer.open_report or trainer.begin_report()
        if report:
            self._asked = [evaluate(describe(), report.policy, "validation")]
        elif self._test:
            last = trainer.live_policy.tensors()
            policies = [last] if trainer.improved else [last, self._best]
            self._asked = [evaluate(describe(), policy, "test") for policy in policies]
        else:
            self._take_tests([])

    @property
    def evaluations(self) -> list[Future[Evaluation]]:
        """What `begin_evaluation` has asked for and `end_evaluation` needs."""
        return self._asked

    def end_evaluation(self) -> None:
        """Takes over what others have found, for which it waits."""
        evaluations = [asked.result() for asked in self._asked]
        self._asked = []
        if self.trainer.open_report:
            policy = self.trainer.open_report.policy
            self.trainer.end_report(*evaluations)
            if self.trainer.improved:
                self._best = policy
        else:
            self._take_tests(evaluations)

    def report(self) -> dict[str, Any]:
        """Everything that was measured so far, the last report among it; the same keys from the first report on."""
        trainer = self.trainer
        status = (DIVERGED if trainer.diverged else FINISHED) if self._ended else RUNNING
        return {
            **trainer.last_report,
            **self._final,
            metrics.STEP: trainer.updates,
            metrics.EVALUATED: max(0, trainer.reported),
            metrics.BEST_UPDATES: trainer.best_updates,
            metrics.ENGINE: trainer.engine.name,
            metrics.STATUS: status,
            metrics.REASON: trainer.broken_off,
        }

    def save(self, folder: Path) -> None:
        """Writes a checkpoint into a folder; between two updates at any time.

        It is the best policy so far, as `gems_ray.load_policy` reads it, with the state of the training beside it.
        """
        tensors, facts = self.trainer.state_dict()
        write_checkpoint(folder / TRAINER, tensors, facts)
        if self._best:
            self.trainer.live_policy.save_with(folder, self._best)

    def load(self, folder: Path) -> None:
        """Continues where `save` was called.

        Raises:
            CheckpointError: a file is missing, damaged, or of another cell; what was loaded before is of no use.
        """
        try:
            tensors, facts = read_checkpoint(folder / TRAINER)
            former = (folder / FORMER_BEST).exists()
            best = load_file(folder / (FORMER_BEST if former else TENSORS)) if facts["best_updates"] >= 0 else {}
            self.trainer.load_state_dict(tensors, facts)
        except (torch.OutOfMemoryError, torch.AcceleratorError):  # says nothing about the checkpoint
            raise
        except UNREADABLE as error:
            raise CheckpointError(f"{folder}: {' '.join(str(error).split())}") from None
        self._best = best

    def _run_tests(self) -> None:
        trainer, evaluations = self.trainer, []
        policy = trainer.live_policy
        if self._test:
            evaluations = [self._test.evaluate(policy)]
            if not trainer.improved:
                networks = trainer.algorithm.networks
                after_last_update = flatten_modules(networks)
                load_modules(networks, self._best)
                evaluations.append(self._test.evaluate(policy))
                load_modules(networks, after_last_update)
        self._take_tests(evaluations)

    def _take_tests(self, evaluations: list[Evaluation]) -> None:
        """Ends the cell.

        Args:
            evaluations: of the last and of the best policy; one where they are the same, none without test users.
        """
        if self._offline:
            found = self._offline(self.trainer.live_policy)
            self._final |= {metrics.offline(name): value for name, value in found.model_dump().items()}
        if evaluations:
            for kind, evaluation in zip(KINDS, (evaluations[0], evaluations[-1]), strict=True):
                self._final |= {metrics.test(kind, name): value for name, value in evaluation.model_dump().items()}
        self._ended = True


def open_training(
    cell: CellDescription, dataset: Dataset, world: World | None, checkpoint: Path | None, say: Callable[[str], None]
) -> CellTraining:
    """The training of a cell, continued from a checkpoint; begun anew where that cannot be read.

    Args:
        cell: what determines it.
        dataset: logged transitions.
        world: that the dataset was collected in, if it is known.
        checkpoint: folder that `CellTraining.save` wrote into; None to begin.
        say: told what a reader of the cell's log should know.
    """
    training = CellTraining(cell, dataset, world, say)
    if checkpoint is not None:
        try:
            training.load(checkpoint)
        except CheckpointError as error:
            say(f"begins anew, its checkpoint cannot be read: {error}")
            training = CellTraining(cell, dataset, world, say)  # parts of the former are the checkpoint's
    trainer = training.trainer
    begun = "goes on" if trainer.reported >= 0 else "begins"
    say(
        f"{begun} after {trainer.updates} updates on {trainer.algorithm.device} of {platform.node()}, "
        f"process {os.getpid()}; engine {trainer.engine.name} ({trainer.engine.why})"
    )
    return training
