"""`run_tune.py plan`: what a run would do, checked and estimated, without running it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gems_ray.cli.options import Address, Name, Storage
from gems_ray.cli.paths import RUNS, run_places

if TYPE_CHECKING:
    from gems_ray.execution.plan import Machine, Plan
    from gems_ray.experiments.spec import Experiment, SearchSpec

SHOWN_CELLS = 40


def plan(
    config: Annotated[Path, typer.Argument(help="Experiment file.")],
    storage: Storage = RUNS,
    name: Name = None,
    address: Address = None,
) -> None:
    """Check an experiment file and estimate its cost.

    Lists every cell, compares what it asks for with this machine or a cluster, estimates time, memory and disk. Runs
    nothing.
    """
    from gems_ray.experiments.check import load_experiment

    experiment = load_experiment(config)
    print_plan(experiment, run_places(storage, config.stem if name is None else name)[0], address)


def print_plan(experiment: "Experiment", folder: Path, address: str | None) -> None:
    """Prints the plan of an experiment.

    Args:
        experiment: grid or search.
        folder: its run folder.
        address: of a Ray cluster; None for this machine.
    Raises:
        GemsRayError: a dataset, a world, the folder or the resources are not as the experiment needs them.
    """
    import gems_ray
    from gems_ray.cli.console import print_line
    from gems_ray.cli.progress import ConsoleListener
    from gems_ray.errors import RunFolderError
    from gems_ray.experiments.progress import describe_seconds

    planned = gems_ray.plan(experiment, folder, address=address, listener=ConsoleListener())
    for line in [*_dataset_lines(planned), *_cell_lines(planned), *_speed_lines(planned)]:
        print_line(line)
    if address:
        print_line(f"cluster at {address}: {_describe_nodes(planned.machines)}")
    print_line(f"cells: {planned.total}, of which {planned.ended} have ended; {planned.at_once} run at once")
    print_line(f"time: about {describe_seconds(planned.seconds)}")
    memory, free = planned.memory_bytes / 1e9, planned.memory_free_bytes / 1e9
    where = "on all nodes together" if address else f"{free:.1f} GB are free here"
    print_line(f"memory: about {memory:.1f} GB; {where}")
    disk, free = planned.disk_bytes / 1e9, planned.disk_free_bytes / 1e9
    print_line(f"disk: about {disk:.2f} GB; {free:.1f} GB are free in {planned.place}")
    if disk > free:
        raise RunFolderError(f"{folder}: the run needs {disk:.2f} GB of disk, {free:.2f} GB are free there.")
    print_line("Nothing was run.")


def _describe_nodes(machines: "Sequence[Machine]") -> str:
    """The nodes of a cluster, those that are alike together: `3 nodes: 2 with 4 CPUs and 0 GPUs, 1 with ...`."""
    kinds = [
        f"{count} with {_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"
        for (cpus, gpus), count in sorted(Counter(machines).items())
    ]
    return f"{_count(len(machines), 'node')}: {', '.join(kinds)}"


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}{'' if number == 1 else 's'}"


def _dataset_lines(planned: "Plan") -> list[str]:
    episodes = planned.experiment.dataset.episodes
    return [
        f"dataset of {dataset.environment}: "
        + (
            f"{episodes} episodes will be collected into {dataset.path}"
            if dataset.transitions is None
            else f"{dataset.path}, {dataset.transitions:,} transitions, {dataset.fingerprint}"
        )
        for dataset in planned.datasets
    ]


def _cell_lines(planned: "Plan") -> list[str]:
    if planned.experiment.search:
        return _search_lines(planned.experiment, planned.experiment.search)
    lines = []
    for cell, status in ((planned_cell.cell, planned_cell.status) for planned_cell in planned.cells[:SHOWN_CELLS]):
        settings = ", ".join(f"{key} {value}" for key, value in cell.settings.items()) or "published defaults"
        lines.append(f"  {cell.name:<44} {status:<10} {settings}")
    if (more := len(planned.cells) - SHOWN_CELLS) > 0:
        lines.append(f"  ... and {more} more")
    return lines


def _search_lines(experiment: "Experiment", search: "SearchSpec") -> list[str]:
    trials, seeds = experiment.planned_trials, search.seeds_per_trial
    lines = [
        f"search: {trials} trials with {seeds} seed{'s' * (seeds > 1)} each, proposed by {search.sampler}",
        f"maximises: {', '.join(search.objectives)}",
    ]
    lines += [
        f"  {algorithm}.{setting}: {domain.describe()}"
        for algorithm, domains in search.space.items()
        for setting, domain in domains.items()
    ]
    if again := search.confirm.planned(len(experiment.algorithm)):
        lines.append(
            f"then up to {again} cells per environment: the best and the defaults, on fresh seeds and test users"
        )
    return lines


def _speed_lines(planned: "Plan") -> list[str]:
    lines = []
    for algorithm in planned.experiment.algorithm:
        slowest, fastest = planned.updates_per_second(algorithm)
        lines.append(
            f"{algorithm}: {fastest:,.0f} updates/s here, alone and not compiled (engine "
            f"{planned.engine(algorithm)}); the best of several short measurements, the slowest was {slowest:,.0f}"
        )
    return lines
