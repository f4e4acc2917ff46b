"""The trainable of Ray Tune: an offline-RL algorithm on a dataset, tested in the simulator."""

import gc
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray import tune
from ray.exceptions import RayError, RayTaskError
from ray.train._internal.session import _TrainingResult
from ray.tune import PlacementGroupFactory
from ray.tune.result import DONE, SHOULD_CHECKPOINT

from gems_ray import metrics
from gems_ray.algorithms import AlgorithmClass, register
from gems_ray.data.schema import Dataset
from gems_ray.device import memory_fraction
from gems_ray.errors import ConfigError, GemsRayError
from gems_ray.execution.cell_training import CellTraining, open_training
from gems_ray.execution.listener import RunListener
from gems_ray.execution.pack_training import PackTraining
from gems_ray.execution.sources import open_source
from gems_ray.execution.storage import CheckpointStorage
from gems_ray.experiments.cell_folder import FAILED, RUNNING
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellCheckpoint, CellDescription
from gems_ray.experiments.spec import Cell
from gems_ray.processor import compute_with
from gems_ray.tune.evaluators import Evaluators
from gems_ray.world.bundle import World, find_world
from gems_ray.yaml_file import yaml_text

SET_BACK = "set back"  # status of a trial that the machine ended, not the cell
MACHINE_ERRORS = (OSError, MemoryError, RayError)  # of the machine, the object store or the network; they may pass

Datasets = Mapping[str, "ray.ObjectRef[Dataset]"]


class OfflineRL(tune.Trainable):
    """Trains one algorithm on one dataset with one seed, for `ray.tune.Tuner`.

        tuner = tune.Tuner(
            OfflineRL,
            param_space={
                "environment": "diffuse_mix",
                "algorithm": "td3_bc",
                "settings": {"alpha": tune.loguniform(0.1, 10)},
                "dataset": {"file": "mine.npz"},
                "training": {"max_timesteps": 10_000, "evaluation_interval": 1_000},
            },
            tune_config=tune.TuneConfig(metric="eval/return_mean", mode="max", num_samples=8),
        )

    `config` holds plain values under the names of an experiment file: `environment`, and where they differ from the
    defaults `algorithm`, `seed`, `settings` of the algorithm, `world`, `dataset`, `training`, `evaluation`, `resources`
    (`cpu` and `gpu`). Every step trains up to the next evaluation and returns losses, Q-values and returns under the
    names of gems_ray/metrics.py; the last one also returns what the test users made of the policies. A checkpoint holds
    the exact state: an interrupted trial ends with the numbers of one that nothing disturbed. It can be loaded with
    other settings, so that schedulers may change `alpha` or a learning rate on the way.
    """

    def setup(
        self,
        config: dict[str, Any],
        dataset: Dataset | Datasets | None = None,
        algorithms: Sequence[AlgorithmClass] = (),
        slice_s: float | None = None,
        raise_errors: bool = True,
        process_name: str = "",
    ) -> None:
        """Opens the training.

        Args:
            config: what is trained.
            dataset: to train on, by `tune.with_parameters`; or references to datasets by environment. None for the
                file that the config names.
            algorithms: from outside the package, that this process and its evaluators do not know yet.
            slice_s: seconds of training after which a step returns, and has its state saved, whether an evaluation was
                due or not; None trains up to the evaluation.
            raise_errors: false ends a trial that cannot go on with a `status` and a `reason`, in place of an error, so
                that whoever runs it can tell a mistake of the cell from one of the machine.
            process_name: what Ray calls this process for as long as it lives, where it trains one cell after the other;
                empty for what it trains.
        """
        logging.captureWarnings(True)
        for algorithm in algorithms:
            register(algorithm)
        self._algorithms = algorithms
        self._dataset, self._slice_s, self._raise_errors = dataset, slice_s, raise_errors
        self._process_name = process_name
        self._training: CellTraining | PackTraining | None = None
        self._open()

    def step(self) -> dict[str, Any]:
        """Trains up to the next evaluation, or for a slice of time; a slice repeats the last report."""
        ray._raylet.setproctitle(f"ray::{self._trains()}")  # Ray itself shows nothing but the class and the method
        if self._training is not None and self._status == RUNNING:
            self._attempt(self._train)
        training, failed = self._training, self._status != RUNNING
        report: dict[str, Any] = {**(training.report() if training else {}), metrics.LOG: "\n".join(self._log)}
        self._log.clear()
        if failed:  # what ends a pack as a whole is true of each of its cells that goes on
            end = {metrics.STATUS: self._status, metrics.REASON: self._reason}
            others = report.get(metrics.PACK, {})
            for name, other in others.items():
                others[name] = other | end if other.get(metrics.STATUS, RUNNING) == RUNNING else other
            report |= end
        elif self._slice_s is not None:
            report[SHOULD_CHECKPOINT] = True
        return {**report, DONE: failed or (training is not None and training.ended)}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes the exact state: safetensors with plain facts in JSON."""
        if self._training is not None:
            self._training.save(Path(checkpoint_dir))

    def save(self, checkpoint_dir: str | None = None) -> _TrainingResult:
        """Saves into the trial's storage; where that is full or cannot be reached, the trial ends after that."""
        try:
            return super().save(checkpoint_dir)
        except MACHINE_ERRORS as error:
            if self._raise_errors:
                raise
            self._end(SET_BACK, _first_line(error))
            return _TrainingResult(checkpoint=None, metrics={})

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Continues from the folder of a checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another algorithm.
        """
        if isinstance(self._training, CellTraining):  # packs belong to our own runs, whose cells name their checkpoints
            self._training.load(Path(checkpoint))

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another config in the same process, which saves its start-up time."""
        self.config = new_config
        self._open()
        return True

    def cleanup(self) -> None:
        """Lets go of the training."""
        self._training = None

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> PlacementGroupFactory | None:
        """The `resources` of the config; one CPU where it names none. Each evaluator of a pack has one of its CPUs."""
        asked = config.get("resources") or {}
        cpu, evaluators = asked.get("cpu", 1), _evaluators(config)
        trains = {"CPU": cpu - evaluators, "GPU": asked.get("gpu", 0)}
        return PlacementGroupFactory([trains, *[{"CPU": 1}] * evaluators])

    def __repr__(self) -> str:
        """What the dashboard and log prefixes show; Ray asks for it once, when the process has started."""
        return getattr(self, "_process_name", "") or self._trains()

    def _trains(self) -> str:
        return label(getattr(self, "config", None) or {}) or type(self).__name__

    def _open(self) -> None:
        self._training = None
        self._status, self._reason = RUNNING, ""
        self._log: list[str] = []
        gc.collect()  # what refers to itself keeps the memory of the cell before
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        self._attempt(self._load, (*MACHINE_ERRORS, torch.OutOfMemoryError))  # others may leave the GPU soon

    def _load(self) -> None:
        cell = _as_in_the_script(cell_of(self.config))
        gpu = self._share_machine(cell.experiment.training.device)
        dataset, world = self._data(cell)
        others = self.config.get("pack")
        if not others:
            self._training = _open_cell(self.config, dataset, world, gpu, self._log.append)
            return
        configs = {config["cell"]: config for config in (self.config, *others)}
        openers = {name: partial(_open_cell, config, dataset, world, gpu) for name, config in configs.items()}
        evaluate = None
        if world and (number := _evaluators(self.config)):
            self._log.append(f"policies are evaluated while training goes on, on CPUs of their own: {number}")
            evaluate = Evaluators(number, self._trains(), world, cell.experiment.evaluation, self._algorithms)
        self._training = PackTraining(openers, self._log.append, _reason, evaluate)

    def _data(self, cell: Cell) -> tuple[Dataset, Any]:
        """The dataset, and the world that it was collected in, if that is known."""
        if self._dataset is None:
            source = open_source(cell.experiment, cell.environment, RunListener())
            return source.dataset, source.world
        given = self._dataset
        dataset = given if isinstance(given, Dataset) else ray.get(given[cell.environment])
        world = find_world(cell.experiment.world(cell.environment)) if dataset.world_fingerprint else None
        return dataset, world

    def _share_machine(self, device: str) -> float:
        """As many threads as the trial has CPUs, and its share of the GPU's memory, which Ray does not divide.

        Args:
            device: that the cell asks for.
        Returns:
            the share of the GPU.
        """
        asked = self.trial_resources
        share = asked.bundles[0] if isinstance(asked, PlacementGroupFactory) else {}  # its evaluators have the others
        compute_with(max(1, int(share.get("CPU", 1))))
        gpu = float(share.get("GPU", 0))
        if gpu and device == "auto" and not torch.cuda.is_available():
            self._log.append(f"has {gpu:g} of a GPU, and torch cannot use it here: trains on the CPU")
        if 0 < gpu < 1 and device != "cpu" and torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(memory_fraction(gpu, total), 0)
        return gpu

    def _train(self) -> None:
        assert self._training is not None
        deadline = None if self._slice_s is None else time.monotonic() + self._slice_s
        # One evaluation at most, so that a scheduler sees each of them.
        self._training.advance(stop=lambda: deadline is not None and time.monotonic() > deadline)

    def _attempt(self, work: Callable[[], None], may_pass: tuple[type[Exception], ...] = MACHINE_ERRORS) -> None:
        if self._raise_errors:
            work()
            return
        try:
            work()
        except torch.AcceleratorError:
            raise  # no cell can use the GPU in this process any more: Tune ends it, and the queue finds a new one
        except may_pass as error:
            self._end(SET_BACK, _first_line(error))
        except Exception as error:
            self._end(FAILED, _reason(error, self._log.append))

    def _end(self, status: str, reason: str) -> None:
        self._status, self._reason = status, reason


def _reason(error: Exception, say: Callable[[str], None]) -> str:
    """Why a cell has failed; an error of the machine or of its GPU is raised."""
    if isinstance(error, RayTaskError):  # what an evaluator has met
        error = error.cause
    if isinstance(error, (*MACHINE_ERRORS, torch.AcceleratorError)):
        raise error
    if isinstance(error, GemsRayError | torch.OutOfMemoryError):
        return str(error)
    say("".join(traceback.format_exception(error)))
    return f"{type(error).__name__}: {error} (the traceback is in the cell's log)"


def _open_cell(
    config: Mapping[str, Any], dataset: Dataset, world: World | None, gpu: float, say: Callable[[str], None]
) -> CellTraining:
    """The training of a cell with a share of a GPU, continued from the checkpoint that its config names."""
    cell, checkpoint = _placed(_as_in_the_script(cell_of(config)), gpu), config.get("checkpoint")
    with ExitStack() as stack:
        folder = None
        if checkpoint:
            storage = CheckpointStorage(checkpoint["storage"])
            folder = stack.enter_context(storage.fetched(CellCheckpoint(path=checkpoint["path"], updates=0)))
        return open_training(CellDescription.of(cell), dataset, world, folder, say)


def _evaluators(config: Mapping[str, Any]) -> int:
    """How many processes play the policies of a pack: one for each of its CPUs but the one that trains."""
    cpu, others = (config.get("resources") or {}).get("cpu", 1), config.get("pack") or ()
    return max(0, min(int(cpu) - 1, 1 + len(others))) if others else 0


CONFIG_KEYS = (
    "environment",
    "algorithm",
    "seed",
    "settings",
    "world",
    "dataset",
    "training",
    "evaluation",
    "resources",
)


def cell_of(config: Mapping[str, Any]) -> Cell:
    """The cell that the config of a trial stands for.

    Raises:
        ConfigError: a key is unknown, or a value impossible.
    """
    given = {key: _plain(value) for key, value in config.items() if key not in ("checkpoint", "cell", "pack")}
    if unknown := [key for key in given if key not in CONFIG_KEYS]:
        raise ConfigError(f"config: `{unknown[0]}` is not known. Keys: {', '.join(CONFIG_KEYS)}.")
    environment, settings, world = given.get("environment"), given.pop("settings", None), given.pop("world", None)
    algorithm = given.get("algorithm", "td3_bc")
    given |= {"settings": {algorithm: settings}} if settings else {}
    given |= {"worlds": {environment: world}} if world else {}
    cells = check_experiment(given).cells()
    if len(cells) != 1:
        raise ConfigError(
            "config: expected one environment, one algorithm and one seed; many trials have many configs."
        )
    return cells[0]


def config_of(cell: Cell) -> dict[str, Any]:
    """The config of the trial that trains a cell."""
    described, imports = cell.describe(), cell.experiment.imports
    world = Path(described["world"])  # a folder must not depend on the worker's working directory
    return {
        **described,
        "algorithm": imports.get(cell.algorithm, cell.algorithm),
        "world": str(world.absolute()) if world.is_dir() else described["world"],
    }


def label(config: Mapping[str, Any]) -> str:
    """What a trial trains, on a line: `td3_bc diffuse_mix seed 1 alpha 0.46`."""
    if "environment" not in config:
        return ""
    settings = [f"{name} {yaml_text(value)}" for name, value in (config.get("settings") or {}).items()]
    words = [config.get("algorithm", "td3_bc"), config["environment"], f"seed {config.get('seed', 0)}", *settings]
    words += [f"and {len(config['pack'])} more"] if config.get("pack") else []
    return " ".join(map(str, words))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _as_in_the_script(cell: Cell) -> Cell:
    """With paths as the script meant them: Tune may have moved this process into the folder of its trial."""
    start, experiment = Path(os.environ.get("TUNE_ORIG_WORKING_DIR", "")), cell.experiment
    spec = experiment.dataset
    paths = {"folder": str(start / spec.folder), "file": spec.file and str(start / spec.file)}
    worlds = {
        name: str(start / world) if (start / world).is_dir() else world for name, world in experiment.worlds.items()
    }
    update = {"dataset": spec.model_copy(update=paths), "worlds": worlds}
    return replace(cell, experiment=experiment.model_copy(update=update))


def _placed(cell: Cell, gpu: float) -> Cell:
    """The cell on the CPU, where its trial has no share of a GPU: whether others are visible depends on the node.

    Raises:
        ConfigError: it must have a GPU.
    """
    training = cell.experiment.training
    if gpu:
        return cell
    if training.device == "cuda":
        raise ConfigError("training.device is cuda, but the trial has no GPU: set resources.gpu, for example to 0.25.")
    update = {"training": training.model_copy(update={"device": "cpu"})}
    return replace(cell, experiment=cell.experiment.model_copy(update=update))


def _plain(value: Any) -> Any:
    """A value of a search space without NumPy's types."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value
