"""Runs an experiment in its run folder, from wherever it stands, and prints what came of it."""

import shlex
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gems_ray.cli.console import episode_progress, say
from gems_ray.cli.export import print_tables, write_tables
from gems_ray.cli.progress import RunProgress
from gems_ray.errors import ConfigError
from gems_ray.execution.sources import Source, open_source, record_datasets, write_references
from gems_ray.experiments.candidates import candidates, read_trials, search_of, with_objectives, write_best
from gems_ray.experiments.cell_folder import ENDED, FAILED
from gems_ray.experiments.objectives import FQE
from gems_ray.experiments.run_folder import RunFolder, check_free
from gems_ray.experiments.spec import Cell, Experiment, check_placement
from gems_ray.learning.trainer import resolve_device
from gems_ray.machine import machine_report

if TYPE_CHECKING:
    from gems_ray.tune.run import CellRunner


class Execution:
    """An experiment under way in its run folder. Ray starts with the first cell that has something to do.

    Args:
        experiment: grid or search; a search with its objectives.
        run: its folder.
        sources: datasets by environment.
        address: of a Ray cluster; None for this machine.
    """

    def __init__(
        self, experiment: Experiment, run: RunFolder, sources: Mapping[str, Source], address: str | None
    ) -> None:
        self.experiment = experiment
        self.run = run
        self._sources = sources
        self._address = address
        self._stack = ExitStack()
        self._runner: CellRunner | None = None

    def __enter__(self) -> "Execution":
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def grid(self, cells: Sequence[Cell]) -> bool:
        """Trains the cells that have not ended; true when interrupted before that."""
        self.run.open_cells(cells)
        if all(self.run.cell(cell.name).status in ENDED for cell in cells):
            return False
        return self._start().run_cells(cells)

    def search(self, study_storage: str | None) -> bool:
        """Runs the trials, then the candidates on fresh seeds; true when interrupted before the last one."""
        from gems_ray.experiments.study import lost_storage_in_one_line, open_study
        from gems_ray.tune.search import is_complete

        for cell in self.run.all_cells():
            cell.set_damaged_result_aside()
        place = open_study(self.run, study_storage)
        with lost_storage_in_one_line(place):
            if not is_complete(self.experiment, self.run, place) and self._start().run_search(self.experiment, place):
                return True
        trials = read_trials(self.run, search_of(self.experiment).objectives)
        chosen = candidates(self.experiment, trials)
        self.run.write_candidates([candidate.as_record() for candidate in chosen])
        if chosen:
            say("Training the best trials and the defaults again, on fresh seeds ...")
            if self.grid([cell for candidate in chosen for cell in candidate.cells]):
                return True
        write_best(self.run, self.experiment, trials, chosen)
        return False

    def _start(self) -> "CellRunner":
        """Starts Ray, once."""
        if self._runner is None:
            from gems_ray.tune.cluster import connected, nodes, token_file
            from gems_ray.tune.run import CellRunner

            say("Starting Ray ..." if self._address is None else f"Joining Ray at {self._address} ...")
            dashboard = self._stack.enter_context(connected(self._address, self.run.path / "ray.log"))
            resources = self.experiment.resources.usable_on(nodes(), say)
            at_once = sum(resources.cells_on(*node) for node in nodes())
            say(f"Ray dashboard: {dashboard or 'not available'}")
            say(f"Its token is in {token_file() or 'no file (authentication is off, or RAY_AUTH_TOKEN is set)'}")
            watch = self._stack.enter_context(RunProgress(self.run))
            self._runner = CellRunner(self.run, self._sources, resources, at_once, watch)
        return self._runner


def execute(experiment: Experiment, folder: Path, address: str | None, study_storage: str | None = None) -> None:
    """Runs what has not ended yet: the cells of a grid, or the trials of a search and their confirmation.

    Args:
        experiment: grid or search.
        folder: run folder, new or of the same experiment.
        address: of a Ray cluster; None for this machine.
        study_storage: database of the study; None for SQLite in the run folder.
    Raises:
        typer.Exit: 130 when interrupted, 1 when cells failed or are not finished.
    """
    if address is None:
        resolve_device(experiment.training.device)  # an error now, not in every cell
    check_placement(experiment)
    if study_storage:
        from gems_ray.experiments.study import check_storage

        check_storage(study_storage)
    if not experiment.search:
        check_free(folder, experiment)
    with episode_progress(experiment.dataset.episodes) as progress:
        sources = {key: open_source(experiment, key, say, progress) for key in experiment.environment}
    if experiment.search:
        experiment = resolve_search(experiment, {key: source.world is not None for key, source in sources.items()})
    run = RunFolder.create(folder, experiment, machine_report())
    with run.locked():
        record_datasets(run, sources)
        for environment, source in sources.items():
            if source.world and experiment.evaluation.test_users:
                write_references(run, experiment, environment, source.world)
        with Execution(experiment, run, sources, address) as execution:
            try:
                if experiment.search:
                    interrupted = execution.search(study_storage)
                else:
                    interrupted = execution.grid(experiment.cells())
            except KeyboardInterrupt:
                interrupted = True
        again = ["python", "run_tune.py", "resume", str(run.path)]
        again += ["--address", address] if address else []
        again += ["--study-storage", "URL"] if study_storage else []  # not repeated: it may hold a password
        _conclude(run, interrupted, shlex.join(again))


def resolve_search(experiment: Experiment, has_world: Mapping[str, bool]) -> Experiment:
    """The search with its objectives; they must be measurable.

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
        say(
            "No world, so no returns: the search maximises `fqe`, an estimate (fitted Q evaluation) on "
            f"{resolved.evaluation.holdout:.0%} of the episodes, which are kept from training."
        )
    return resolved


def _conclude(run: RunFolder, interrupted: bool, again: str) -> None:
    """Prints the result and how to go on; sets the exit code."""
    print_tables(run)
    write_tables(run, run.path)
    folders = run.cells()
    for folder in folders:
        result = folder.result()
        if result and result.status == FAILED:
            say(f"failed: {folder.path.name}: {result.reason}")
    say(f"Run folder: {run.path}")
    unfinished = sum(folder.status not in ENDED for folder in folders)
    if unfinished or interrupted:
        say(f"{unfinished} of {len(folders)} cells are not finished; all are saved. Continue with:")
        say(f"  {again}")
    if interrupted:
        raise typer.Exit(130)
    if unfinished or any(folder.status == FAILED for folder in folders):
        raise typer.Exit(1)
