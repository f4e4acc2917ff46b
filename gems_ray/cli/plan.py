"""`run_tune.py plan`: what a run would do, checked and estimated, without running it."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gems_ray.cli.grid import Address, Name, Storage
from gems_ray.cli.paths import run_path

if TYPE_CHECKING:
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.experiments.spec import Cell, Experiment
    from gems_ray.world.bundle import World

WORKER_BYTES = 350e6  # private memory of a worker on CPUs: Python, torch, networks, one evaluation
TRANSITION_BYTES = 330  # of a collected file, slates and clicks included
SHOWN_CELLS = 40


def plan(
    config: Annotated[Path, typer.Argument(help="Experiment file.")],
    storage: Storage = Path("runs"),
    name: Name = None,
    address: Address = None,
) -> None:
    """Check an experiment file and estimate its cost.

    Lists every cell, compares what it asks for with this machine or a cluster, estimates time, memory and disk. Runs
    nothing.
    """
    from gems_ray.experiments.spec import load_experiment

    print_plan(load_experiment(config), run_path(storage, config.stem if name is None else name), address)


def print_plan(experiment: "Experiment", folder: Path, address: str | None) -> None:
    """Prints the plan of an experiment.

    Args:
        experiment: grid or search.
        folder: its run folder.
        address: of a Ray cluster; None for this machine.
    Raises:
        GemsRayError: a dataset, a world, the folder or the resources are not as the experiment needs them.
    """
    import psutil
    import torch

    from gems_ray.cli.console import say
    from gems_ray.cli.execute import resolve_search
    from gems_ray.errors import RunFolderError
    from gems_ray.experiments.cell_folder import ENDED
    from gems_ray.experiments.progress import describe_seconds
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.experiments.spec import check_placement
    from gems_ray.learning.estimate import estimate

    check_placement(experiment)
    worlds, data_bytes, new_bytes = _check_data(experiment)
    if experiment.search:
        experiment = resolve_search(experiment, {name: world is not None for name, world in worlds.items()})
    place = _check_folder(experiment, folder)
    nodes = _nodes(address)
    at_once = sum(experiment.resources.usable_on(nodes, say).cells_on(*node) for node in nodes)

    run = RunFolder(folder)
    counted = _counted_cells(experiment)
    training = experiment.training
    if address and training.device == "cuda" and not torch.cuda.is_available():
        say("No GPU here to measure on: the times below are those of this machine's CPU.")
        training = training.model_copy(update={"device": "cpu"})
    costs = {}
    for cell, _ in counted:
        kind = (cell.environment, cell.algorithm, cell.experiment.evaluation.test_users)
        if kind not in costs:
            evaluation = cell.experiment.evaluation
            costs[kind] = estimate(cell.algorithm, cell.settings, training, evaluation, worlds[cell.environment])
    _print_cells(experiment, run, [cell for cell, _ in counted])
    total = round(sum(count for _, count in counted))
    ended = sum(cell.status in ENDED for cell in run.cells())
    share = max(0, total - ended) / total  # of the work that is left
    seconds, disk, longest = 0.0, float(new_bytes), 0.0
    for cell, count in counted:
        cost = costs[cell.environment, cell.algorithm, cell.experiment.evaluation.test_users]
        seconds, disk = seconds + share * count * cost.seconds, disk + share * count * cost.disk_bytes
        longest = max(longest, cost.seconds if share else 0.0)
    for algorithm in experiment.algorithm:
        speed = max((cost.updates_per_second for kind, cost in costs.items() if kind[1] == algorithm), default=0.0)
        say(f"{algorithm}: {speed:,.0f} updates/s here, measured alone and not compiled")
    free = shutil.disk_usage(place).free
    memory = WORKER_BYTES * min(at_once, total) + 2 * data_bytes  # read by the driver, shared by the workers
    say(f"cells: {total}, of which {ended} have ended; {at_once} run at once")
    say(f"time: about {describe_seconds(max(seconds / at_once, longest))}")
    say(f"memory: about {memory / 1e9:.1f} GB; {psutil.virtual_memory().available / 1e9:.1f} GB are free here")
    say(f"disk: about {disk / 1e9:.2f} GB; {free / 1e9:.1f} GB are free in {place}")
    if disk > free:
        raise RunFolderError(
            f"{folder}: the run needs {disk / 1e9:.2f} GB of disk, {free / 1e9:.2f} GB are free there."
        )
    say("Nothing was run.")


def _check_data(experiment: "Experiment") -> tuple[dict[str, "World | None"], int, int]:
    """Worlds by environment, bytes of the datasets in memory, bytes of those that are still to be collected."""
    from gems_ray.cli.console import say
    from gems_ray.execution.sources import check_target, dataset_path, open_source, open_world

    worlds: dict[str, World | None] = {}
    data_bytes = new_bytes = 0
    for environment in experiment.environment:
        path = dataset_path(experiment, environment)
        if path.exists() or experiment.dataset.file:
            source = open_source(experiment, environment, say, lambda count: None)
            worlds[environment] = source.world
            data_bytes += source.dataset.nbytes
            say(f"dataset of {environment}: {path}, {len(source.dataset):,} transitions, {source.dataset.fingerprint}")
        else:
            world = worlds[environment] = open_world(experiment, environment)
            check_target(path, "dataset.folder")
            size = experiment.dataset.episodes * world.environment.episode_length * TRANSITION_BYTES
            data_bytes, new_bytes = data_bytes + size, new_bytes + size
            say(f"dataset of {environment}: {experiment.dataset.episodes} episodes will be collected into {path}")
    return worlds, data_bytes, new_bytes


def _check_folder(experiment: "Experiment", folder: Path) -> Path:
    """The folder that exists already, as far down as possible; it must be writable."""
    from gems_ray.errors import RunFolderError
    from gems_ray.experiments.run_folder import check_free

    check_free(folder, experiment)
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (place.is_dir() and os.access(place, os.W_OK)):
        raise RunFolderError(f"{folder}: cannot be written to ({place}). Choose another --storage.")
    return place


def _nodes(address: str | None) -> list[tuple[float, float]]:
    """CPUs and GPUs of every node."""
    if address is None:
        import torch

        return [(float(len(os.sched_getaffinity(0))), float(torch.cuda.device_count()))]
    from gems_ray.tune.cluster import connected, nodes

    with connected(address, Path(os.devnull)):
        return nodes()


def _counted_cells(experiment: "Experiment") -> list[tuple["Cell", float]]:
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


def _print_cells(experiment: "Experiment", run: "RunFolder", cells: "list[Cell]") -> None:
    from gems_ray.cli.console import say

    if experiment.search:
        search = experiment.search
        trials, seeds = experiment.planned_trials, search.seeds_per_trial
        say(f"search: {trials} trials with {seeds} seed{'s' * (seeds > 1)} each, proposed by {search.sampler}")
        say(f"maximises: {', '.join(search.objectives)}")
        for algorithm, domains in search.space.items():
            for setting, domain in domains.items():
                say(f"  {algorithm}.{setting}: {domain.describe()}")
        again = search.confirm.planned(len(experiment.algorithm))
        if again:
            say(f"then up to {again} cells per environment: the best and the defaults, on fresh seeds and test users")
        return
    for cell in cells[:SHOWN_CELLS]:
        settings = ", ".join(f"{key} {value}" for key, value in cell.settings.items()) or "published defaults"
        say(f"  {cell.name:<44} {run.cell(cell.name).status:<10} {settings}")
    if len(cells) > SHOWN_CELLS:
        say(f"  ... and {len(cells) - SHOWN_CELLS} more")
