"""What a run needs of the current folder, copied for the journey to a cluster."""

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gems_ray.errors import ConfigError
from gems_ray.execution.sources import dataset_path
from gems_ray.experiments.spec import Experiment

FILES = "files"  # folder of the parcel for what is put into the run's folder on the cluster
LARGEST_BYTES = 100_000_000  # Ray takes up to 100 MiB in one piece


def pack(config: Path, experiment: Experiment, parcel: Path) -> str:
    """Copies the experiment file, and what it names by relative paths.

    What is named by an absolute path stays where it is: that is a path of the cluster. A dataset that is not here is
    looked for on the cluster, or collected there.

    Args:
        config: experiment file.
        experiment: its content.
        parcel: folder that takes the user's own modules and packages, and in `FILES` the rest under its relative paths.
    Returns:
        the path of the experiment file below `FILES`.
    Raises:
        ConfigError: a path leads out of the current folder, or the files are too large.
    """
    here, files = Path.cwd(), parcel / FILES
    inside = config.absolute().is_relative_to(here) and ".." not in config.parts
    place = config.absolute().relative_to(here) if inside else Path(config.name)
    _copy(config, files / place)
    for source in _datasets_and_worlds(experiment):
        if ".." in source.parts:
            raise ConfigError(
                f"{source}: what a submitted run needs lies below the current folder, or is named by an absolute path, "
                "which is then one of the cluster's. Copy it here, or change the path."
            )
        _copy(source, files / source)
        _check_size(files, source)
    for source in _modules(experiment, here):
        _copy(source, parcel / source.name)
    return str(place)


def _datasets_and_worlds(experiment: Experiment) -> Iterator[Path]:
    """Those that are here, and are named by relative paths."""
    for environment in experiment.environment:
        dataset, world = dataset_path(experiment, environment), Path(experiment.world(environment))
        if dataset.is_file() and not dataset.is_absolute():
            yield dataset
        if world.is_dir() and not world.is_absolute():
            yield world


def _modules(experiment: Experiment, here: Path) -> Iterator[Path]:
    """The modules and packages of the user's own algorithms that lie in the current folder."""
    for path in experiment.imports.values():
        found = find_spec(path.partition(":")[0].partition(".")[0])
        if found and found.origin:
            module = Path(found.origin)
            module = module.parent if module.name == "__init__.py" else module
            if module.parent == here:
                yield module


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _check_size(files: Path, latest: Path) -> None:
    size = sum(file.stat().st_size for file in files.rglob("*") if file.is_file())
    if size > LARGEST_BYTES:
        raise ConfigError(
            f"{latest}: with it {size / 1e6:.0f} MB would travel, expected at most {LARGEST_BYTES / 1e6:.0f} MB. Copy "
            "it to the cluster, and name it in the experiment file by its absolute path there."
        )
