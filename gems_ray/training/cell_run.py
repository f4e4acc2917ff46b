"""One cell from its folder and back: continue, train, checkpoint, test."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from gems_ray import metrics
from gems_ray.data.schema import REQUIRED, Dataset
from gems_ray.errors import DatasetError, WorldError
from gems_ray.experiments.run_folder import DIVERGED, FAILED, FINISHED, WITH_RESULT, CellFolder
from gems_ray.experiments.spec import TrainingSpec
from gems_ray.files import atomic_path
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.training.evaluate import Evaluator
from gems_ray.training.trainer import Report, Trainer, TrainingData
from gems_ray.world.bundle import World


class CellRun:
    """Trains a cell in its folder; a folder that holds a checkpoint is continued.

    Args:
        folder: of the cell, with cell.yaml in it.
        data: dataset.
        world: that the dataset was collected in; None trains without evaluation.
    """

    def __init__(self, folder: CellFolder, data: TrainingData, world: World | None) -> None:
        self.folder = folder
        description = folder.description
        training, evaluation = TrainingSpec(**description["training"]), description["evaluation"]
        self.max_timesteps = training.max_timesteps
        self._fingerprints = {"dataset": data.fingerprint, "world": data.world_fingerprint}
        self._test = Evaluator(world, "test", evaluation["test_users"]) if world else None
        self.trainer = Trainer(
            data,
            description["algorithm"],
            description["settings"],
            description["seed"],
            training,
            Evaluator(world, "validation", evaluation["validation_users"]) if world else None,
        )
        self._continue()

    @property
    def finished(self) -> bool:
        """Whether the cell has its result."""
        return self.folder.status in (*WITH_RESULT, FAILED)

    def advance(self, stop: Callable[[], bool] = lambda: False) -> Report | None:
        """Trains up to the next evaluation, records it, and tests the policies after the last one.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            the report of the evaluation; None when stopped before it.
        """
        trainer = self.trainer
        report = trainer.advance(stop)
        if report is None:
            return None
        if trainer.improved(report):
            self._save_policy()
        if self._test:
            report[metrics.BEST_RETURN] = trainer.best_return
        self.folder.append_metrics(report)
        self.save()
        if trainer.finished:
            self._finish(report)
        return report

    def save(self) -> None:
        """Writes the checkpoint at which training continues; between two updates at any time."""
        tensors, facts = self.trainer.state_dict()
        with atomic_path(self.folder.last_checkpoint) as partial:
            save_file(tensors, partial, metadata={"facts": json.dumps(facts)})

    def _continue(self) -> None:
        """Loads the last checkpoint; without a readable one the cell begins anew."""
        try:
            tensors, facts = read_checkpoint(self.folder)
            self.trainer.load_state_dict(tensors, facts)
        except FileNotFoundError:
            pass
        except (SafetensorError, OSError, ValueError, KeyError):
            self.folder.last_checkpoint.replace(self.folder.path / "last.damaged")
        self.folder.keep_metrics(metrics.STEP, self.trainer.reported)

    def _save_policy(self) -> None:
        """Writes the networks and the normaliser: what is needed to act."""
        algorithm, normalizer = self.trainer.algorithm, self.trainer.buffer.normalizer
        tensors = {
            **flatten_modules(algorithm.networks),
            **{f"normalizer.{name}": value.cpu() for name, value in normalizer._asdict().items()},
        }
        with atomic_path(self.folder.best_checkpoint) as partial:
            save_file(tensors, partial, metadata={"updates": str(self.trainer.best_updates)})

    def _finish(self, report: Report) -> None:
        trainer = self.trainer
        result: dict[str, Any] = {
            "status": DIVERGED if trainer.diverged else FINISHED,
            "updates": trainer.reported,
            "seconds": report[metrics.SECONDS],
            "best_updates": trainer.best_updates,
            "fingerprints": self._fingerprints,
        }
        if self._test:
            algorithm, normalizer = trainer.algorithm, trainer.buffer.normalizer
            last = self._test.algorithm(algorithm, normalizer)
            load_modules(algorithm.networks, load_file(self.folder.best_checkpoint, device=str(algorithm.device)))
            best = self._test.algorithm(algorithm, normalizer)
            result["validation"] = {"last": report[metrics.RETURN_MEAN], "best": trainer.best_return}
            result["test"] = {"last": asdict(last), "best": asdict(best)}
        self.folder.write_result(result)


def read_checkpoint(folder: CellFolder) -> tuple[FlatState, dict[str, Any]]:
    """Tensors and facts of the last checkpoint of a cell."""
    path = folder.last_checkpoint
    if not path.exists():
        raise FileNotFoundError(path)
    with safe_open(path, framework="pt") as file:
        facts = json.loads(file.metadata()["facts"])
    return load_file(path), facts


def training_data(dataset: Dataset) -> TrainingData:
    """What the training needs of a dataset."""
    center, scale = dataset.action_bounds()
    return TrainingData(
        {name: getattr(dataset, name) for name in REQUIRED},
        center,
        scale,
        dataset.fingerprint,
        dataset.metadata.world_fingerprint if dataset.metadata else None,
    )


def check_world(dataset: Dataset, world: World, where: str) -> None:
    """Makes sure that a dataset is evaluated in the world that it was collected in.

    Args:
        dataset: with metadata.
        world: in which its policies would be evaluated.
        where: dataset file, for the message.
    Raises:
        WorldError: it was collected in another world.
        DatasetError: it does not say in which.
    """
    if dataset.metadata is None:
        raise DatasetError(f"{where}: no metadata, so nothing says in which world it was collected.")
    if dataset.metadata.world_fingerprint != world.fingerprint:
        raise WorldError(
            f"{where}: collected in world {dataset.metadata.world_fingerprint} ({dataset.metadata.environment}), but "
            f"the world of {world.environment.name} is {world.fingerprint}. Collect the dataset anew, or name the "
            "world that it was collected in."
        )
