"""What a run would do and cost, checked and estimated, without running it."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from gems_ray.errors import RunFolderError
from gems_ray.execution.listener import RunListener
from gems_ray.execution.run import resolve_search
from gems_ray.execution.sources import check_target, dataset_path, open_source, open_world
from gems_ray.experiments.cell_folder import ENDED
from gems_ray.experiments.check import check_placement, check_tracking
from gems_ray.experiments.run_folder import RunFolder, check_free
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.files import nearest_existing
from gems_ray.learning.estimate import Estimate, estimate
from gems_ray.world.bundle import World

WORKER_BYTES = 350e6  # private memory of a worker on CPUs: Python, torch, networks, one evaluation
TRANSITION_BYTES = 330  # of a collected file, slates and clicks included

Machine = tuple[float, float]  # CPUs and GPUs


@dataclass(frozen=True, slots=True)
class PlannedDataset:
    """The dataset of an environment.

    Args:
        environment: its name.
        path: of the file.
        transitions: in the file; None where it is still to be collected.
        fingerprint: of the file; None where it is still to be collected.
        memory_bytes: of the arrays that training needs.
    """

    environment: str
    path: Path
    transitions: int | None
    fingerprint: str | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell of a grid, or one that stands for many of a search.

    Args:
        cell: what it is.
        status: how far its folder has come.
        count: how many cells it stands for; 1 in a grid.
        cost: of one.
    """

    cell: Cell
    status: str
    count: float
    cost: Estimate


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run would do.

    Args:
        experiment: grid, or search with its objectives.
        datasets: one per environment.
        cells: what is trained.
        total: how many cells the run has at its end.
        ended: how many of them have ended already.
        machines: CPUs and GPUs of each that would train.
        at_once: how many the machines hold at the same time.
        seconds: until the run ends.
        memory_bytes: at the same time, on all machines together.
        memory_free_bytes: on this machine.
        disk_bytes: that the run will write.
        disk_free_bytes: in `place`.
        place: the part of the folder's path that exists.
    """

    experiment: Experiment
    datasets: tuple[PlannedDataset, ...]
    cells: tuple[PlannedCell, ...]
    total: int
    ended: int
    machines: tuple[Machine, ...]
    at_once: int
    seconds: float
    memory_bytes: float
    memory_free_bytes: int
    disk_bytes: float
    disk_free_bytes: int
    place: Path

    def updates_per_second(self, algorithm: str) -> tuple[float, float]:
        """Lowest and highest speed of several short measurements here, alone and without torch's compiler."""
        costs = [cell.cost for cell in self.cells if cell.cell.algorithm == algorithm]
        slowest = min((cost.slowest for cost in costs), default=0.0)
        return slowest, max((cost.updates_per_second for cost in costs), default=0.0)

    def engine(self, algorithm: str) -> str:
        """How the measured updates ran."""
        return next(cell.cost.engine for cell in self.cells if cell.cell.algorithm == algorithm)


def plan_experiment(
    experiment: Experiment, path: Path, machines: Sequence[Machine], here: bool, listener: RunListener
) -> Plan:
    """Checks everything that a run would check, and adds up what it would cost.

    Args:
        experiment: grid or search.
        path: of its run folder.
        machines: CPUs and GPUs of each.
        here: whether this machine is the one that would train.
        listener: told what the experiment asks for and will not get.
    Raises:
        GemsRayError: a dataset, a world, the folder or the resources are not as the experiment needs them.
    """
    check_placement(experiment)
    check_tracking(experiment)
    worlds, datasets, new_bytes = _plan_data(experiment, listener)
    if experiment.search:
        has_world = {environment: world is not None for environment, world in worlds.items()}
        experiment = resolve_search(experiment, has_world, listener)
    place = _writable_part(experiment, path)
    resources = experiment.resources.usable_on(machines, listener.on_line, experiment.training.device)
    at_once = sum(resources.cells_on(*machine) for machine in machines)
    if resources.cells_per_pack > 1:
        listener.on_line(
            f"resources.pack {resources.pack}: the estimate takes a pack for as slow as its cells one after the other; "
            "on a GPU it is faster."
        )
    cells = _plan_cells(experiment, RunFolder(path), worlds, not here and resources.gpu > 0, listener)
    total = round(sum(planned.count for planned in cells))
    ended = sum(cell.status in ENDED for cell in RunFolder(path).cells())
    left = max(0, total - ended) / total  # share of the work
    size = min(resources.cells_per_pack, total)
    places = min(at_once, math.ceil(total / size))  # a pack is not spread over several
    seconds = sum(left * planned.count * planned.cost.seconds for planned in cells) / places
    longest = size * max((planned.cost.seconds for planned in cells if left), default=0.0)
    data_bytes = sum(dataset.memory_bytes for dataset in datasets)
    return Plan(
        experiment,
        tuple(datasets),
        tuple(cells),
        total,
        ended,
        tuple(machines),
        at_once,
        seconds=max(seconds, longest),
        # Datasets are read here, and shared by the workers of each machine.
        memory_bytes=WORKER_BYTES * min(at_once, total) + (1 + len(machines)) * data_bytes,
        memory_free_bytes=psutil.virtual_memory().available,
        disk_bytes=new_bytes + sum(left * planned.count * planned.cost.disk_bytes for planned in cells),
        disk_free_bytes=shutil.disk_usage(place).free,
        place=place,
    )


def this_machine() -> Machine:
    """CPUs that this process may use, and GPUs that torch can use."""
    return float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count())


def _plan_data(
    experiment: Experiment, listener: RunListener
) -> tuple[dict[str, World | None], list[PlannedDataset], int]:
    """Worlds by environment, datasets, and the bytes of those that are still to be collected."""
    worlds: dict[str, World | None] = {}
    datasets, new_bytes = [], 0
    for environment in experiment.environment:
        path = dataset_path(experiment, environment)
        if path.exists() or experiment.dataset.file:
            source = open_source(experiment, environment, listener)
            worlds[environment] = source.world
            data = source.dataset
            datasets.append(PlannedDataset(environment, path, len(data), data.fingerprint, data.nbytes))
        else:
            world = worlds[environment] = open_world(experiment, environment)
            check_target(path, "dataset.folder")
            size = experiment.dataset.episodes * world.environment.episode_length * TRANSITION_BYTES
            new_bytes += size
            datasets.append(PlannedDataset(environment, path, None, None, size))
    return worlds, datasets, new_bytes


def _writable_part(experiment: Experiment, path: Path) -> Path:
    """The part of a run folder's path that exists; it must be writable."""
    check_free(path, experiment)
    place = nearest_existing(path)
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise RunFolderError(f"{path}: cannot be written to ({place}). Choose another --storage.")
    return place


def _plan_cells(
    experiment: Experiment,
    run: RunFolder,
    worlds: Mapping[str, World | None],
    gpus_elsewhere: bool,
    listener: RunListener,
) -> list[PlannedCell]:
    """The cells with their costs; one measurement per environment, algorithm and number of test users."""
    training = experiment.training
    if gpus_elsewhere and not torch.cuda.is_available():
        listener.on_line("No GPU here to measure on: the times below are those of this machine's CPU.")
        training = training.model_copy(update={"device": "cpu"})
    costs: dict[tuple[str, str, int], Estimate] = {}
    planned = []
    for cell, count in _counted_cells(experiment):
        evaluation = cell.experiment.evaluation
        kind = (cell.environment, cell.algorithm, evaluation.test_users)
        if kind not in costs:
            costs[kind] = estimate(cell.algorithm, cell.settings, training, evaluation, worlds[cell.environment])
        planned.append(PlannedCell(cell, run.cell(cell.name).status, count, costs[kind]))
    return planned


def _counted_cells(experiment: Experiment) -> list[tuple[Cell, float]]:
    """Cells, and how many each stands for: in a search, for its share of the trials or of the candidates."""
    if not experiment.search:
        return [(cell, 1) for cell in experiment.cells()]
    algorithms, search = experiment.algorithm, experiment.search
    counts = {
        False: experiment.planned_trials * search.seeds_per_trial / len(algorithms),
        True: search.confirm.planned(len(algorithms)) / len(algorithms),
    }
    return [
        (cell, count)
        for algorithm in algorithms
        for test, count in counts.items()
        for cell in experiment.with_settings(
            algorithm, experiment.settings.get(algorithm, {}), experiment.seed, test
        ).cells()
        if count
    ]
