"""A run from the experiment to its tables; what trains the cells comes from outside."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from gems_ray.errors import ConfigError
from gems_ray.execution.interruption import RunInterrupted
from gems_ray.execution.listener import RunListener
from gems_ray.execution.sources import Source, open_source, record_datasets, write_references
from gems_ray.execution.storage import absolute, open_storage, storage_of_run
from gems_ray.experiments.candidates import candidates, read_trials, search_of, with_objectives, write_best
from gems_ray.experiments.objectives import FQE
from gems_ray.experiments.run_folder import RunFolder, check_free
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.machine import machine_report
from gems_ray.results.export import write_tables

if TYPE_CHECKING:
    from gems_ray.experiments.study import StudyPlace


@dataclass(frozen=True, slots=True)
class OpenRun:
    """A run whose folder is locked and whose datasets and worlds are loaded.

    Args:
        experiment: grid or search; a search with its objectives.
        folder: of the run.
        sources: datasets and worlds by environment.
        listener: hears what is done.
    """

    experiment: Experiment
    folder: RunFolder
    sources: Mapping[str, Source]
    listener: RunListener


class Backend(Protocol):
    """What trains cells: this process (`execution.in_process`) or Ray (`tune.backend`)."""

    def check(self, experiment: Experiment) -> None:
        """Makes sure, before any work, that the cells of an experiment can be trained here.

        Raises:
            GemsRayError: they cannot.
        """

    def train_cells(self, run: OpenRun, cells: Sequence[Cell]) -> None:
        """Trains cells until each has ended or cannot go on; every cell has a folder.

        Raises:
            RunInterrupted: a signal came first; all cells are saved.
        """

    def train_trials(self, run: OpenRun, study: "StudyPlace") -> None:
        """Trains the cells of a search's trials until every trial has ended.

        Raises:
            RunInterrupted: a signal came first; all cells are saved.
            StudyError: the study belongs to another search.
        """

    def close(self) -> None:
        """Ends what was started for the training."""


def run_experiment(
    experiment: Experiment,
    path: Path,
    backend: Backend,
    listener: RunListener,
    storage: str | None = None,
    study_storage: str | None = None,
) -> RunFolder:
    """Runs what has not ended yet: the cells of a grid, or the trials of a search and their confirmation.

    Args:
        experiment: grid or search.
        path: of the run folder, new or of the same experiment.
        backend: trains the cells; closed at the end.
        listener: hears what is done.
        storage: folder or URI below which the checkpoints are kept; None for the run folder, or for what it began with.
        study_storage: database of a search's study; None for SQLite in the run folder.
    Returns:
        the run folder, its tables written. Cells may have failed or be unfinished: the folder says which.
    Raises:
        GemsRayError: the experiment, its data, its folder or the machine is not as it must be.
        RunInterrupted: a signal came first; cells are saved, tables written.
    """
    backend.check(experiment)
    if study_storage:
        from gems_ray.experiments.study import check_storage

        check_storage(study_storage)
    uri = None if storage is None else storage_of_run(absolute(storage), path.name)
    if uri is not None:
        open_storage(uri)
    if not experiment.search:  # a search finds its objectives first
        check_free(path, experiment)
    sources = {environment: open_source(experiment, environment, listener) for environment in experiment.environment}
    if experiment.search:
        has_world = {environment: source.world is not None for environment, source in sources.items()}
        experiment = resolve_search(experiment, has_world, listener)
    folder = RunFolder.create(path, experiment, machine_report())
    with folder.locked():
        folder.check_storage(uri)
        record_datasets(folder, sources)
        for environment, source in sources.items():
            if source.world and experiment.evaluation.test_users:
                write_references(folder, experiment, environment, source.world)
        interruption: KeyboardInterrupt | None = None
        try:
            with closing(backend):
                run = OpenRun(experiment, folder, sources, listener)
                if experiment.search:
                    _run_search(run, backend, study_storage)
                else:
                    _train_cells(run, backend, experiment.cells())
        except RunInterrupted as error:
            interruption = error
        except KeyboardInterrupt:  # while something was started or ended
            interruption = RunInterrupted()
        if folder.running_cells():  # of processes that were ended; the tables would count them as running
            folder.write_running_cells([])
        write_tables(folder, folder.path)
    if interruption:
        raise interruption
    return folder


def resolve_search(experiment: Experiment, has_world: Mapping[str, bool], listener: RunListener) -> Experiment:
    """The search with its objectives; they must be measurable.

    Args:
        experiment: a search.
        has_world: by environment, whether its dataset says in which world it was collected.
        listener: told where estimates have to do in place of returns.
    Raises:
        ConfigError: an objective needs a world, and a dataset has none.
    """
    without = [environment for environment, known in has_world.items() if not known]
    resolved = with_objectives(experiment, has_world=not without)
    search = search_of(resolved)
    if without and (search.objectives != (FQE,) or search.asha):
        raise ConfigError(
            f"search: {', '.join(search.objectives)} needs the simulator, but the dataset of {without[0]} does not say "
            "in which world it was collected. Leave `search.objectives` out, or set it to fqe, and do without `asha`."
        )
    if without and not search_of(experiment).objectives:
        listener.on_line(
            "No world, so no returns: the search maximises `fqe`, an estimate (fitted Q evaluation) on "
            f"{resolved.evaluation.holdout:.0%} of the episodes, which are kept from training."
        )
    return resolved


def _train_cells(run: OpenRun, backend: Backend, cells: Sequence[Cell]) -> None:
    if unfinished := run.folder.open_cells(cells):
        backend.train_cells(run, unfinished)


def _run_search(run: OpenRun, backend: Backend, study_storage: str | None) -> None:
    """The trials, then the best of them and the defaults on fresh seeds."""
    from gems_ray.experiments.study import lost_storage_in_one_line, open_study

    for cell in run.folder.all_cells():
        cell.set_damaged_result_aside()
        cell.set_damaged_checkpoint_aside()
    study = open_study(run.folder, study_storage)
    with lost_storage_in_one_line(study):
        backend.train_trials(run, study)
    trials = read_trials(run.folder, search_of(run.experiment).objectives)
    chosen = candidates(run.experiment, trials)
    run.folder.write_candidates([candidate.as_record() for candidate in chosen])
    if chosen:
        run.listener.on_line("Training the best trials and the defaults again, on fresh seeds ...")
        _train_cells(run, backend, [cell for candidate in chosen for cell in candidate.cells])
    write_best(run.folder, run.experiment, trials, chosen)
