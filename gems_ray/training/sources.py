"""Worlds and datasets of an experiment: found, checked against each other, collected where missing."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gems_ray.collect.collect import collect_dataset
from gems_ray.data.npz import find_dataset, load_dataset, save_dataset
from gems_ray.data.schema import Dataset
from gems_ray.errors import DatasetError
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import DatasetSpec, Experiment
from gems_ray.training.cell_run import check_world
from gems_ray.training.evaluate import Evaluator
from gems_ray.world.bundle import World, find_world


@dataclass(frozen=True, slots=True)
class Source:
    """What the cells of one environment are trained on.

    Args:
        path: dataset file.
        dataset: its content.
        world: in which policies are evaluated; None for a foreign file.
    """

    path: Path
    dataset: Dataset
    world: World | None


def dataset_path(experiment: Experiment, environment: str) -> Path:
    """Where the dataset of an environment lies, or will be collected."""
    spec = experiment.dataset
    return Path(spec.file) if spec.file else find_dataset(environment, spec.quality, Path(spec.folder))


def open_source(
    experiment: Experiment, environment: str, say: Callable[[str], None], progress: Callable[[int], None]
) -> Source:
    """Loads the dataset of an environment, collects it first where it is missing.

    Args:
        experiment: names dataset and world.
        environment: one of its environments.
        say: called with lines for the user.
        progress: called with the number of episodes just collected.
    Raises:
        DatasetError, WorldError: dataset or world is damaged, or they do not belong together.
    """
    spec = experiment.dataset
    path = dataset_path(experiment, environment)
    if spec.file is None and not path.exists():
        world = find_world(experiment.world(environment))
        say(f"Collecting {spec.episodes} {spec.quality} episodes of {environment} into {path} ...")
        save_dataset(_collect(world, spec, progress), path)
    dataset = load_dataset(path)
    if dataset.metadata is None:
        say(
            f"{path}: only the five arrays, no metadata. Training goes on with offline metrics; an evaluation in the "
            "simulator would need to know the world that it was collected in."
        )
        return Source(path, dataset, None)
    world = find_world(experiment.world(environment))
    check_world(dataset, world, str(path))
    if spec.file is None:
        _check_as_asked(dataset, spec, path)
    return Source(path, dataset, world)


def record_datasets(run: RunFolder, sources: Mapping[str, Source]) -> None:
    """Writes the fingerprints of the datasets and worlds into the run folder, or compares them with what stands there.

    Raises:
        RunFolderError: a dataset was changed since the run began.
    """
    run.check_datasets(
        {
            environment: {
                "file": str(source.path),
                "fingerprint": source.dataset.fingerprint,
                "transitions": len(source.dataset.rewards),
                "world_fingerprint": source.world.fingerprint if source.world else None,
            }
            for environment, source in sources.items()
        }
    )


def write_references(run: RunFolder, experiment: Experiment, environment: str, world: World) -> None:
    """Evaluates the reference policies on the test users, once per run and environment."""
    if run.references(environment) is None:
        rows = Evaluator(world, "test", experiment.evaluation.test_users).references()
        run.write_references(environment, {name: asdict(row) for name, row in rows.items()})


def _collect(world: World, spec: DatasetSpec, progress: Callable[[int], None]) -> Dataset:
    return collect_dataset(
        world,
        spec.quality,
        spec.episodes,
        spec.seed,
        deterministic=spec.deterministic,
        expert_share=spec.expert_share,
        progress=progress,
    )


def _check_as_asked(dataset: Dataset, spec: DatasetSpec, path: Path) -> None:
    """A collected file with other settings than the experiment's would be a silent mix-up."""
    metadata = dataset.metadata
    assert metadata is not None
    for name in ("quality", "episodes", "seed", "deterministic"):
        found, expected = getattr(metadata, name), getattr(spec, name)
        if found != expected:
            raise DatasetError(
                f"{path}: collected with {name} {found}, the experiment asks for {expected}. "
                f"Remove the file to collect it anew, set dataset.{name} to {found}, or name the file itself "
                "(dataset.file in an experiment, --dataset for train)."
            )
