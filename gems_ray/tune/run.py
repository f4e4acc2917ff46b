"""Runs the unfinished cells of an experiment under Ray Tune."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial

from gems_ray.experiments.run_folder import FAILED, WITH_RESULT, CellFolder, RunFolder
from gems_ray.experiments.spec import Experiment, Resources
from gems_ray.training.cell_run import training_data
from gems_ray.training.sources import Source
from gems_ray.tune.trainable import CellTrainable

TUNE_FOLDER = "ray"  # Tune's own state, of no use after the run: cells continue from their folders
RETRIES = 2  # of a cell whose process or node was lost


@dataclass(frozen=True, slots=True)
class CellProgress:
    """State of a cell while the grid runs."""

    name: str
    state: str  # waiting, running, finished, failed
    report: Mapping[str, Any]


Watcher = Callable[[CellProgress], None]


def run_cells(
    experiment: Experiment, run: RunFolder, sources: Mapping[str, Source], resources: Resources, watch: Watcher
) -> bool:
    """Trains every cell that has no result yet; true when interrupted before that, with all cells saved.

    Args:
        experiment: the grid.
        run: its folder, which every node must see.
        sources: datasets by environment.
        resources: of one cell, known to fit on a node.
        watch: called at every change of a cell.
    """
    todo = [cell for cell in experiment.cells() if run.cell(cell.name).status not in WITH_RESULT]
    for cell in todo:
        run.cell(cell.name).forget_failure()
    # One reference per dataset, so that a node fetches only what its trials train on, and that once.
    datasets = {name: ray.put(training_data(source.dataset)) for name, source in sources.items()}
    configs = [
        {
            "folder": str(run.cell(cell.name).path.absolute()),
            "label": f"{cell.algorithm} {cell.environment} seed {cell.seed}",
            "environment": cell.environment,
            "world": _anywhere(experiment.world(cell.environment)),
            "cpu": resources.cpu,
            "gpu": resources.gpu,
        }
        for cell in todo
    ]
    trainable = tune.with_parameters(CellTrainable, datasets=datasets)
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu}),
        param_space={"cell": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(reuse_actors=True, trial_dirname_creator=_trial_folder),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(run.path.absolute()),
            callbacks=[_Watch(run, watch)],
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            verbose=0,
        ),
    )
    scratch = run.path / TUNE_FOLDER
    shutil.rmtree(scratch, ignore_errors=True)
    tuner.fit()
    shutil.rmtree(scratch, ignore_errors=True)
    return any(run.cell(cell.name).status not in (*WITH_RESULT, FAILED) for cell in todo)


class _Watch(tune.Callback):
    """Tells the watcher about every change; records failures that the trial itself could not."""

    def __init__(self, run: RunFolder, watch: Watcher) -> None:
        self._run = run
        self._watch = watch

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks; nothing ever reads that back, and a live display cannot be pickled."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._tell(trial, "running")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self._tell(trial, "running", result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._tell(trial, self._folder(trial).status, trial.last_result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        folder = self._folder(trial)
        if folder.result() is None:
            reason = str(trial.get_error() or "its process was lost").strip().splitlines()[-1]
            folder.write_result({"status": FAILED, "updates": 0, "reason": reason})
        self._tell(trial, FAILED, trial.last_result)

    def _tell(self, trial: Trial, state: str, report: Mapping[str, Any] | None = None) -> None:
        self._watch(CellProgress(self._folder(trial).path.name, state, report or {}))

    def _folder(self, trial: Trial) -> CellFolder:
        return self._run.cell(Path(trial.config["cell"]["folder"]).name)


def _anywhere(world: str) -> str:
    """The world's name, or its folder as a path that does not depend on a worker's working directory."""
    return str(Path(world).absolute()) if Path(world).is_dir() else world


def _trial_folder(trial: Trial) -> str:
    return str(trial.trial_id)
