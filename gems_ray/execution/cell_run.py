"""One cell from its folder and back: continue, train, checkpoint, test."""

import logging
import math
import os
import platform
from collections.abc import Callable, Mapping
from functools import partial

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gems_ray import metrics
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.checkpoints import read_checkpoint, read_facts, write_checkpoint
from gems_ray.data.schema import Dataset
from gems_ray.data.trajectories import last_steps
from gems_ray.errors import CheckpointError, GemsRayError, RunFolderError, WorldError
from gems_ray.evaluation.offline import OfflineEvaluator, hold_out
from gems_ray.evaluation.returns import Evaluator
from gems_ray.experiments.cell_folder import DIVERGED, ENDED, FAILED, FINISHED, CellFolder, set_aside
from gems_ray.experiments.records import CellResult, FinalEvaluations, Fingerprints, ValidationReturns
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.flat_state import load_modules
from gems_ray.learning.trainer import Report, Trainer
from gems_ray.policies.base import Policy
from gems_ray.world.bundle import World

# What a torn or foreign checkpoint raises while it is read or loaded; RuntimeError: layers of other sizes.
UNREADABLE = (CheckpointError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)


class CellRun:
    """Trains a cell in its folder; a folder that holds a checkpoint is continued.

    The cell belongs to this process until `close`: a process that was believed lost, and is not, cannot write into it.

    Args:
        folder: of the cell, with cell.yaml in it.
        dataset: logged transitions.
        world: that the dataset was collected in; None trains without evaluation.
        wait_s: for another process to let go of the cell.
    Raises:
        TimeoutError: it did not.
    """

    def __init__(self, folder: CellFolder, dataset: Dataset, world: World | None, wait_s: float = 0) -> None:
        self.folder = folder
        description = folder.description
        training, evaluation = description.training, description.evaluation
        self.max_timesteps = training.max_timesteps
        self._fingerprints = Fingerprints(dataset=dataset.fingerprint, world=dataset.world_fingerprint)
        self._lock = folder.lock(wait_s)
        folder.remove_partial_files()
        self._log_handler = folder.open_log()
        self.log = logging.getLogger(f"gems_ray.cell.{folder.path.name}")
        self.log.setLevel(logging.INFO)
        self.log.propagate = False
        self.log.addHandler(self._log_handler)
        try:
            if world and world.fingerprint != dataset.world_fingerprint:
                raise WorldError(
                    f"{folder.path}: the dataset was collected in world {dataset.world_fingerprint}, but the world of "
                    f"{world.environment.name} on {platform.node()} is {world.fingerprint}. Put the same world on "
                    "every machine that trains."
                )
            self._test = Evaluator(world, "test", evaluation.test_users) if world and evaluation.test_users else None
            rows, self._offline = None, None
            if evaluation.holdout:
                rows, held_out = hold_out(last_steps(dataset.arrays), evaluation.holdout)
            name, settings, seed = description.algorithm, description.settings, description.seed
            self._make_trainer = partial(
                Trainer,
                dataset,
                name,
                settings,
                seed=seed,
                world=world,
                validation_users=evaluation.validation_users,
                training=training,
                rows=rows,
                warn=self.log.warning,
            )
            self.trainer = self._make_trainer()
            if evaluation.holdout:
                self._offline = OfflineEvaluator(dataset.arrays, held_out, self.trainer.sampler.normalizer)
            self._continue()
        except BaseException as error:
            self.log.error("cannot be opened: %s", error, exc_info=not isinstance(error, GemsRayError | OSError))
            self.close()
            raise
        place = f"{self.trainer.algorithm.device} of {platform.node()}, process {os.getpid()}"
        self.log.info("%s after %d updates on %s", "goes on" if self._begun else "begins", self._updates, place)

    @property
    def finished(self) -> bool:
        """Whether the cell has ended."""
        return self.folder.status in ENDED

    def advance(self, stop: Callable[[], bool] = lambda: False) -> Report | None:
        """Trains up to the next evaluation, records it, and tests the policies after the last one.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            the report of the evaluation; None when stopped before it.
        """
        trainer = self.trainer
        if trainer.finished:  # the process ended between the last checkpoint and the result
            self._finish(trainer.last_report)
            return trainer.last_report
        report = trainer.advance(stop)
        if trainer.broken_off:
            self.log.warning("%s", trainer.broken_off)
            self.save()
            self._finish(trainer.last_report)
            return trainer.last_report
        if report is None:
            return None
        self.folder.append_metrics(report)
        self.save()
        if trainer.improved:  # after the checkpoint, from which it can be written again
            self._save_policy()
        self.log.info("%s", describe_report(report, self.max_timesteps))
        if trainer.finished:
            self._finish(report)
        return report

    def save(self) -> None:
        """Writes the checkpoint at which training continues; between two updates at any time."""
        tensors, facts = self.trainer.state_dict()
        write_checkpoint(self.folder.last_checkpoint, tensors, facts)

    def fail(self, reason: str) -> None:
        """Ends the cell without a result."""
        self.folder.write_result(CellResult(status=FAILED, updates=self._updates, reason=reason))
        self.log.error("failed: %s", reason)

    def close(self) -> None:
        """Lets go of the cell."""
        self.log.removeHandler(self._log_handler)
        self._log_handler.close()
        self._lock.release()

    @property
    def _updates(self) -> int:
        return self.trainer.updates

    @property
    def _begun(self) -> bool:
        return self.trainer.reported >= 0

    @property
    def _validated(self) -> bool:
        return metrics.RETURN_MEAN in self.trainer.last_report

    def _continue(self) -> None:
        """Loads the last checkpoint; without a readable one the cell begins anew."""
        if self.folder.last_checkpoint.exists():
            try:
                tensors, facts = read_checkpoint(self.folder.last_checkpoint)
                self.trainer.load_state_dict(tensors, facts)
                self._check_policy()
            except (torch.OutOfMemoryError, torch.AcceleratorError):  # says nothing about the checkpoint
                raise
            except UNREADABLE as error:
                del self.trainer  # parts of it are the checkpoint's
                self.trainer = self._make_trainer()
                self._begin_anew(str(error))
        self.folder.keep_metrics_until(self.trainer.reported)
        rows = self.folder.metrics()
        if self._begun and (not rows or int(rows[-1][metrics.STEP]) < self.trainer.reported):
            self.folder.append_metrics(self.trainer.last_report)  # its line was cut off; the checkpoint has it

    def _check_policy(self) -> None:
        """Makes sure that the best policy, which the result will need, is the one that the checkpoint knows of.

        The process may have ended between the two; then the trainer still has it.
        """
        best = self.trainer.best_updates
        if best < 0 or self._saved_updates() == best:
            return
        if best != self._updates:
            raise ValueError(f"{self.folder.best_checkpoint.name} is not the policy after {best} updates")
        self._save_policy()

    def _saved_updates(self) -> int | None:
        """After how many updates the best policy was saved; None where there is no readable one."""
        try:
            return int(read_facts(self.folder.best_checkpoint)["updates"])
        except (CheckpointError, FileNotFoundError, KeyError, ValueError, TypeError):
            return None

    def _begin_anew(self, reason: str) -> None:
        for checkpoint in (self.folder.last_checkpoint, self.folder.best_checkpoint):
            if checkpoint.exists():
                set_aside(checkpoint)
        self.log.warning("begins anew, its checkpoint cannot be read: %s", reason)

    def _save_policy(self) -> None:
        """Writes the networks and the normaliser: what is needed to act."""
        tensors = self.trainer.live_policy.tensors()
        write_checkpoint(self.folder.best_checkpoint, tensors, {"updates": self.trainer.best_updates})

    def _finish(self, report: Report) -> None:
        trainer = self.trainer
        validation, test = None, None
        if self._validated:
            validation = ValidationReturns(last=report[metrics.RETURN_MEAN], best=trainer.best_return)
        offline = self._offline(trainer.live_policy) if self._offline else None
        if self._test:
            last = best = self._test.evaluate(trainer.live_policy)
            if not trainer.improved:
                networks, device = trainer.algorithm.networks, str(trainer.algorithm.device)
                load_modules(networks, load_file(self.folder.best_checkpoint, device=device))
                best = self._test.evaluate(trainer.live_policy)
            test = FinalEvaluations(last=last, best=best)
        result = CellResult(
            status=DIVERGED if trainer.diverged else FINISHED,
            updates=trainer.reported,
            seconds=report[metrics.SECONDS],
            best_updates=trainer.best_updates,
            fingerprints=self._fingerprints,
            report={key: value for key, value in report.items() if math.isfinite(value)},
            validation=validation,
            offline=offline,
            test=test,
            reason=trainer.broken_off or None,
        )
        self.folder.write_result(result)
        self.log.info("%s", result.status)


def read_policy(run: RunFolder, cell: CellFolder, checkpoint: str, device: str = "cpu") -> Policy:
    """The policy of a cell's checkpoint.

    Args:
        run: folder of the run, which says where algorithms from outside the package are.
        cell: one of its cells.
        checkpoint: `best` or `last`.
        device: where the networks live.
    Raises:
        RunFolderError: there is no such checkpoint, or it is damaged.
    """
    description, path = cell.description, cell.best_checkpoint if checkpoint == "best" else cell.last_checkpoint
    try:
        tensors = load_file(path)
        if checkpoint == "last":  # a trainer's whole state
            parts = {"algorithm.": "", "buffer.": "normalizer."}
            tensors = {
                name + key.removeprefix(part): value
                for key, value in tensors.items()
                for part, name in parts.items()
                if key.startswith(part)
            }
        facts = {
            "algorithm": run.experiment().imports.get(description.algorithm, description.algorithm),
            "settings": description.settings,
            "state_dim": len(tensors["normalizer.state_mean"]),
            "action_dim": len(tensors["normalizer.action_center"]),
            "policy": {},
        }
        return LearnedPolicy.restore(facts, tensors, device)
    except FileNotFoundError:
        raise RunFolderError(f"{path}: no such checkpoint. The cell is {cell.status}.") from None
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise RunFolderError(f"{path}: cannot be read ({str(error).splitlines()[0]}).") from None


def describe_report(report: Mapping[str, float], max_timesteps: int) -> str:
    """A report on one line."""
    parts = [f"{int(report[metrics.STEP]):>9,}/{max_timesteps:,}"]
    if metrics.RETURN_MEAN in report:
        parts.append(f"return {report[metrics.RETURN_MEAN]:6.1f} ± {report[metrics.RETURN_SE]:.1f}")
        parts.append(f"best {report[metrics.BEST_RETURN]:6.1f}")
    if metrics.Q_POLICY in report:
        parts.append(f"Q {report[metrics.Q_POLICY]:.1f} (bound {report[metrics.Q_BOUND]:.1f})")
    parts.append(f"cloning {report[metrics.CLONING_ERROR]:.3f}")
    return "  ".join(parts)
