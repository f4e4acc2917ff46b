"""Runs cells under Ray Tune until every one of them has ended, whatever happens to the processes in between."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune

from gems_ray.execution.sources import Source
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Experiment, Resources
from gems_ray.experiments.study import StudyPlace
from gems_ray.tune.cell_queue import CellQueue, CellSearch, Watcher
from gems_ray.tune.run_end import RunEnd
from gems_ray.tune.search import PruningAsha, StudySearch
from gems_ray.tune.trainable import CellTrainable

TUNE_FOLDER = "ray"  # Tune's own state, of no use after the run: cells continue from their folders


class CellRunner:
    """The trainable with its data, ready to run cells of one run.

    Args:
        run: folder, which every node must see.
        sources: datasets by environment.
        resources: of one cell, known to fit on a node.
        at_once: how many cells the cluster holds.
        watcher: called at every change of a cell.
        stop: whether the run is to end early, with its cells saved.
    """

    def __init__(
        self,
        run: RunFolder,
        sources: Mapping[str, Source],
        resources: Resources,
        at_once: int,
        watcher: Watcher,
        stop: Callable[[], bool],
    ) -> None:
        self.run = run
        self._resources = resources
        self._at_once = at_once
        self._watcher = watcher
        self._stop = stop
        # One reference per dataset, so that a node fetches only what its trials train on, and that once.
        datasets = {name: ray.put(source.dataset.for_training()) for name, source in sources.items()}
        trainable = tune.with_parameters(CellTrainable, datasets=datasets)
        self._trainable = tune.with_resources(trainable, {"cpu": resources.cpu, "gpu": resources.gpu})

    def run_cells(self, cells: Sequence[Cell]) -> bool:
        """Trains every cell that has not ended, each in its folder; true when interrupted, with all cells saved."""
        queue = self._queue()
        queue.add(cells)
        # As many may wait for a place as there are cells: a cluster that grows by itself looks at those.
        return self._fit(queue, tune.TuneConfig(search_alg=CellSearch(queue), max_concurrent_trials=len(cells)))

    def run_search(self, experiment: Experiment, place: StudyPlace) -> bool:
        """Runs the trials of a search; true when interrupted, with all cells saved.

        Raises:
            StudyError: the study belongs to another search.
        """
        queue = self._queue()
        searcher = StudySearch(experiment, self.run, place, queue)
        queue.add(searcher.cells_without_result())
        asha = experiment.search and experiment.search.asha
        scheduler = PruningAsha(experiment, queue.end) if asha else None
        config = tune.TuneConfig(search_alg=searcher, scheduler=scheduler, max_concurrent_trials=self._at_once)
        return self._fit(queue, config)

    def _queue(self) -> CellQueue:
        return CellQueue(self.run, self._describe, self._watcher, RunEnd(self._stop))

    def _fit(self, queue: CellQueue, config: tune.TuneConfig) -> bool:
        """One run of Tune; what went wrong in our own code is raised after all cells have been saved."""
        config.num_samples = -1  # the searcher says when it is done
        config.reuse_actors = True
        config.trial_dirname_creator = lambda trial: str(trial.trial_id)
        scratch = self.run.path / TUNE_FOLDER
        shutil.rmtree(scratch, ignore_errors=True)
        with queue.end.raised():
            tune.Tuner(
                self._trainable,
                tune_config=config,
                run_config=tune.RunConfig(
                    name=TUNE_FOLDER,
                    storage_path=str(self.run.path.absolute()),
                    callbacks=[queue],
                    stop=queue.end,
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a cell's own folder has it all
                    verbose=0,
                ),
            ).fit()
        shutil.rmtree(scratch, ignore_errors=True)
        return self._stop()

    def _describe(self, cell: Cell) -> dict[str, Any]:
        """What the trainable needs to know of a cell."""
        return {
            "folder": str(self.run.cell(cell.name).path.absolute()),
            "label": f"{cell.algorithm} {cell.environment} seed {cell.seed}",
            "environment": cell.environment,
            "world": _absolute_world(cell.experiment.world(cell.environment)),
            "cpu": self._resources.cpu,
            "gpu": self._resources.gpu,
        }


def _absolute_world(world: str) -> str:
    """The world's name, or its folder as a path that does not depend on a worker's working directory."""
    return str(Path(world).absolute()) if Path(world).is_dir() else world
