"""Runs cells under Ray Tune until every one of them has ended, whatever happens to the processes in between."""

import itertools
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from gems_ray.execution.sources import Source
from gems_ray.experiments.cell_folder import ENDED
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Experiment, Resources
from gems_ray.experiments.study import StudyPlace
from gems_ray.tune.interruption import FirstError, stop_signals
from gems_ray.tune.search import PruningAsha, StudySearch
from gems_ray.tune.trainable import CellTrainable, back_off_seconds
from gems_ray.tune.watch import CellWatch, Watcher

TUNE_FOLDER = "ray"  # Tune's own state, of no use after the run: cells continue from their folders


class CellRunner:
    """The trainable with its data, ready to run cells of one run.

    Args:
        run: folder, which every node must see.
        sources: datasets by environment.
        resources: of one cell, known to fit on a node.
        at_once: how many cells the cluster holds.
        watcher: called at every change of a cell.
    """

    def __init__(
        self, run: RunFolder, sources: Mapping[str, Source], resources: Resources, at_once: int, watcher: Watcher
    ) -> None:
        self.run = run
        self._resources = resources
        self._at_once = at_once
        # One reference per dataset, so that a node fetches only what its trials train on, and that once.
        datasets = {name: ray.put(source.dataset.for_training()) for name, source in sources.items()}
        trainable = tune.with_parameters(CellTrainable, datasets=datasets)
        self._trainable = tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu})
        self._errors = FirstError()
        self._watch = CellWatch(run, watcher, self._errors)

    def run_cells(self, cells: Sequence[Cell]) -> bool:
        """Trains every cell that has not ended; true when interrupted before that, with all cells saved."""
        self.run.open_cells(cells)
        for attempt in itertools.count():
            todo = [cell for cell in cells if self._unfinished(cell)]
            if not todo:
                break
            if attempt:
                time.sleep(back_off_seconds(attempt))
            if self.fit({"cell": tune.grid_search([self.describe(cell) for cell in todo])}, tune.TuneConfig()):
                return True
        return False

    def run_search(self, experiment: Experiment, place: StudyPlace) -> bool:
        """Runs the trials of a search; true when interrupted before the last one, with all cells saved.

        Raises:
            StudyError: the study belongs to another search.
        """
        attempt = 0
        while True:
            searcher = StudySearch(experiment, self.run, place, self.describe, self._errors)
            if (lost := searcher.told_too_early()) and self.run_cells(lost):
                return True
            asha = experiment.search and experiment.search.asha
            scheduler = PruningAsha(experiment, self.run, self._errors) if asha else None
            config = tune.TuneConfig(
                search_alg=searcher, scheduler=scheduler, num_samples=-1, max_concurrent_trials=self._at_once
            )
            if self.fit({}, config):
                return True
            if all(self.gave_up(name) for name in searcher.open_cells):
                return False
            attempt += 1
            time.sleep(back_off_seconds(attempt))

    def fit(self, space: Mapping[str, Any], config: tune.TuneConfig) -> bool:
        """One run of Tune; true when it was interrupted.

        A trial that Tune itself takes for lost is left to the next run. What went wrong in a callback is raised, after
        all cells have been saved.
        """
        config.reuse_actors = True
        config.trial_dirname_creator = _trial_folder
        scratch = self.run.path / TUNE_FOLDER
        shutil.rmtree(scratch, ignore_errors=True)
        with self._errors.raised(), stop_signals() as interrupted:
            self._watch.interrupted = interrupted
            tune.Tuner(
                self._trainable,
                param_space=dict(space),
                tune_config=config,
                run_config=tune.RunConfig(
                    name=TUNE_FOLDER,
                    storage_path=str(self.run.path.absolute()),
                    callbacks=[self._watch],
                    failure_config=tune.FailureConfig(max_failures=-1),  # the watch counts, and ends hopeless cells
                    verbose=0,
                ),
            ).fit()
        shutil.rmtree(scratch, ignore_errors=True)
        return interrupted()

    def describe(self, cell: Cell) -> dict[str, Any]:
        """What the trainable needs to know of a cell."""
        return {
            "folder": str(self.run.cell(cell.name).path.absolute()),
            "label": f"{cell.algorithm} {cell.environment} seed {cell.seed}",
            "environment": cell.environment,
            "world": _anywhere(cell.experiment.world(cell.environment)),
            "cpu": self._resources.cpu,
            "gpu": self._resources.gpu,
        }

    def gave_up(self, name: str) -> bool:
        """Whether a cell has been left unfinished for good, in this run."""
        return name in self._watch.gave_up

    def _unfinished(self, cell: Cell) -> bool:
        return self.run.cell(cell.name).status not in ENDED and not self.gave_up(cell.name)


def _anywhere(world: str) -> str:
    """The world's name, or its folder as a path that does not depend on a worker's working directory."""
    return str(Path(world).absolute()) if Path(world).is_dir() else world


def _trial_folder(trial: Any) -> str:
    return str(trial.trial_id)
