"""Runs cells under Ray Tune until every one of them has ended, whatever happens to the processes in between."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

import ray
from ray import tune
from ray.tune.experiment import Trial

from gems_ray.algorithms import ALGORITHMS
from gems_ray.execution.sources import Source
from gems_ray.execution.storage import absolute, attempt_name
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Experiment, Resources
from gems_ray.experiments.study import StudyPlace
from gems_ray.tune.cell_queue import CellQueue, CellSearch, Watcher, cell_name
from gems_ray.tune.fair_share import FairShare
from gems_ray.tune.gauges import CellGauges
from gems_ray.tune.offline_rl import OfflineRL
from gems_ray.tune.run_end import RunEnd
from gems_ray.tune.scheduling import InOrder
from gems_ray.tune.search import PruningAsha, StudySearch

# Ray asks a process for its name once, when it starts: a cell that takes long has one of its own, which tells what is
# trained. Its start takes some seconds, so short cells follow each other in the same process, which says just that.
UPDATES_WORTH_A_PROCESS = 100_000
SLICE_SECONDS = 2.0  # of training between two checkpoints, which are signs of life too
REPORT_SECONDS = 0.01  # of the driver's time for each of them (benchmarks/many_cells.py)


def slice_seconds(at_once: int) -> float:
    """How long a cell trains between two checkpoints: longer where so many report that the driver would be busy.

    Args:
        at_once: cells that are trained at the same time; together they take half of the driver's time at most.
    """
    return max(SLICE_SECONDS, 2 * REPORT_SECONDS * at_once)


class CellRunner:
    """The trainable with its data, ready to run cells of one run.

    Args:
        run: folder.
        sources: datasets by environment.
        resources: of one cell, known to fit on a node.
        at_once: how many cells the cluster holds.
        watcher: called at every change of a cell.
        stop: whether the run is to end early, with its cells saved.
        shared: whether other runs may want the same machines.
        callbacks: further ones for Tune, that hear of every cell when it has been recorded.
    """

    def __init__(
        self,
        run: RunFolder,
        sources: Mapping[str, Source],
        resources: Resources,
        at_once: int,
        watcher: Watcher,
        stop: Callable[[], bool],
        shared: bool,
        callbacks: Sequence[tune.Callback] = (),
    ) -> None:
        self.run = run
        self._callbacks = callbacks
        self._sources, self._resources = sources, resources
        self._at_once = at_once
        self._watcher = watcher
        self._stop = stop
        self._share = FairShare(resources) if shared else None
        # One reference per dataset, so that a node fetches only what its trials train on, and that once.
        datasets = {name: ray.put(source.dataset.for_training()) for name, source in sources.items()}
        self._short_cells = run.experiment().training.max_timesteps < UPDATES_WORTH_A_PROCESS
        process_name = f"OfflineRL of run {run.path.absolute().name}, one short cell after another"
        self._trainable = tune.with_parameters(
            OfflineRL,
            dataset=datasets,
            algorithms=ALGORITHMS.foreign(),
            slice_s=slice_seconds(at_once * resources.cells_per_pack),
            raise_errors=False,
            process_name=process_name if self._short_cells else "",
        )
        self._trainable.__qualname__ = OfflineRL.__name__  # what Ray calls its processes

    def run_cells(self, cells: Sequence[Cell]) -> bool:
        """Trains every cell that has not ended, each in its folder; true when interrupted, with all cells saved."""
        queue = self._queue()
        queue.add(cells)
        # A cluster that grows by itself looks at the cells that wait for a place. Elsewhere none waits in Ray, which
        # keeps something of every process that it was asked for.
        at_once = len(cells) if self._share else self._at_once
        scheduler = InOrder(self._at_once)
        config = tune.TuneConfig(search_alg=CellSearch(queue), scheduler=scheduler, max_concurrent_trials=at_once)
        return self._fit(queue, config)

    def run_search(self, experiment: Experiment, place: StudyPlace) -> bool:
        """Runs the trials of a search; true when interrupted, with all cells saved.

        Raises:
            StudyError: the study belongs to another search.
        """
        queue = self._queue()
        searcher = StudySearch(experiment, self.run, place, queue)
        queue.add(searcher.cells_without_result())
        asha = experiment.search and experiment.search.asha
        at_once = self._at_once
        scheduler = PruningAsha(experiment, self.run, queue.end, at_once) if asha else InOrder(at_once)
        config = tune.TuneConfig(search_alg=searcher, scheduler=scheduler, max_concurrent_trials=at_once)
        return self._fit(queue, config)

    def _queue(self) -> CellQueue:
        places = self._share.allowed if self._share else None
        return CellQueue(self.run, self._sources, self._resources, self._watcher, RunEnd(self._stop), places)

    def _fit(self, queue: CellQueue, config: tune.TuneConfig) -> bool:
        """One run of Tune; what went wrong in our own code is raised after all cells have been saved."""
        config.num_samples = -1  # the searcher says when it is done
        config.reuse_actors = self._short_cells
        config.trial_dirname_creator = _folder_name
        with queue.end.raised(), ExitStack() as stack:
            if self._share:
                stack.callback(self._share.leave)
            tune.Tuner(
                self._trainable,
                tune_config=config,
                run_config=tune.RunConfig(
                    name=attempt_name(),  # an earlier one may have left checkpoints of the same numbers
                    storage_path=absolute(self.run.storage),
                    callbacks=[queue, CellGauges(self.run.path.absolute().name), *self._callbacks],
                    stop=queue.end,
                    checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                    verbose=0,
                ),
            ).fit()
        return self._stop()


def _folder_name(trial: Trial) -> str:
    return f"{cell_name(trial)}-{trial.trial_id}"
