"""Worlds and datasets of an experiment: found, checked against each other, collected where missing."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gems_ray.data.npz import find_dataset, load_dataset
from gems_ray.data.schema import Dataset
from gems_ray.errors import DatasetError, WorldError
from gems_ray.evaluation.belonging import check_world
from gems_ray.evaluation.returns import Evaluator
from gems_ray.execution.listener import RunListener
from gems_ray.experiments.records import DatasetFacts, Fingerprints, References
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import DatasetSpec, Experiment
from gems_ray.files import nearest_existing
from gems_ray.program import command_line
from gems_ray.world.bundle import World, find_world
from gems_ray.worldmaking.collect import collect_dataset


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

    @property
    def fingerprints(self) -> Fingerprints:
        """What the results of its cells say of dataset and world."""
        return Fingerprints(dataset=self.dataset.fingerprint, world=self.dataset.world_fingerprint)


def dataset_path(experiment: Experiment, environment: str) -> Path:
    """Where the dataset of an environment lies, or will be collected."""
    spec = experiment.dataset
    return Path(spec.file) if spec.file else find_dataset(environment, spec.quality, Path(spec.folder))


def open_source(experiment: Experiment, environment: str, listener: RunListener) -> Source:
    """Loads the dataset of an environment, collects it first where it is missing.

    Args:
        experiment: names dataset and world.
        environment: one of its environments.
        listener: hears of a collection, and of what a foreign file lacks.
    Raises:
        DatasetError, WorldError: dataset or world is damaged, or they do not belong together.
    """
    spec = experiment.dataset
    path = dataset_path(experiment, environment)
    if not path.exists():
        if spec.file is not None:
            collect = ["collect", "--environment", environment, "--quality", spec.quality, "--output", str(path)]
            key, advice = ("dataset", "file"), f", or collect it: {command_line(*collect)}"
            raise DatasetError(f"{path}: no such dataset. Check ", key, advice)
        world = open_world(experiment, environment)
        check_target(path, "dataset.folder")
        listener.on_line(f"Collecting {spec.episodes} {spec.quality} episodes of {environment} into {path} ...")
        _collect(world, spec, listener).save(path)
    dataset = load_dataset(path)
    if dataset.metadata is None:
        if environment in experiment.worlds:
            key = ("worlds", environment)
            raise DatasetError(
                f"{path}: no metadata, so nothing says that it was collected in the world of ",
                key,
                ". Leave out ",
                key,
                f", name a dataset that was collected in it, or bind the file to it: "
                f"{command_line('dataset', 'attach', str(path), '--world', experiment.worlds[environment])}.",
            )
        listener.on_line(
            f"{path}: only the five arrays, no metadata. Training goes on with offline metrics; an evaluation in the "
            "simulator would need to know the world that it was collected in, which `dataset attach` tests and records."
        )
        return Source(path, dataset, None)
    world = open_world(experiment, environment)
    check_world(dataset, world, str(path))
    if spec.file is None:
        _check_as_asked(dataset, spec, path)
    return Source(path, dataset, world)


def open_world(experiment: Experiment, environment: str) -> World:
    """The world of an environment.

    Raises:
        WorldError: there is none, or it simulates another environment.
    """
    try:
        return find_world(experiment.world(environment), environment)
    except WorldError as error:
        if environment not in experiment.worlds:
            raise
        raise WorldError(("worlds", environment), f": {error}") from None


def check_target(path: Path, where: str) -> None:
    """Makes sure, before the work, that a dataset can be written.

    Args:
        path: of the file.
        where: the option that names it, for the message.
    Raises:
        DatasetError: a folder stands there, or no file can be made.
    """
    if path.is_dir():
        raise DatasetError(f"{where}: expected a file to write, found the folder `{path}`. Name an npz file.")
    place = nearest_existing(path.absolute().parent)
    if not (place.is_dir() and os.access(place, os.W_OK)):
        kind = "a folder without permission to write" if place.is_dir() else "a file"
        raise DatasetError(f"{where}: `{path}` cannot be written, `{place}` is {kind}. Choose another place.")


def record_datasets(run: RunFolder, sources: Mapping[str, Source]) -> None:
    """Writes the fingerprints of the datasets and worlds into the run folder, or compares them with what stands there.

    Raises:
        RunFolderError: a dataset was changed since the run began.
    """
    run.check_datasets(
        {
            environment: DatasetFacts(
                file=str(source.path),
                fingerprint=source.dataset.fingerprint,
                transitions=len(source.dataset.rewards),
                world_fingerprint=source.world.fingerprint if source.world else None,
                logged_return=source.dataset.metadata.behavior_return if source.dataset.metadata else None,
            )
            for environment, source in sources.items()
        }
    )


def write_references(run: RunFolder, experiment: Experiment, environment: str, world: World) -> None:
    """Evaluates the reference policies on the test users, once per run, environment and number of users."""
    users = experiment.evaluation.test_users
    known = run.references(environment)
    if known is None or any(evaluation.users != users for evaluation in known.by_policy.values()):
        evaluations = Evaluator(world, "test", users).references()
        run.write_references(environment, References.model_validate(evaluations))


def _collect(world: World, spec: DatasetSpec, listener: RunListener) -> Dataset:
    return collect_dataset(
        world,
        spec.quality,
        spec.episodes,
        spec.seed,
        deterministic=spec.deterministic,
        expert_share=spec.expert_share,
        progress=lambda collected: listener.on_episodes(collected, spec.episodes),
    )


def _check_as_asked(dataset: Dataset, spec: DatasetSpec, path: Path) -> None:
    """A collected file with other settings than the experiment's would be a silent mix-up."""
    metadata = dataset.metadata
    assert metadata is not None
    asked = {name: getattr(spec, name) for name in ("quality", "episodes", "seed", "deterministic")}
    if spec.quality == "mixed":
        asked["expert_share"] = round(spec.expert_share * spec.episodes) / spec.episodes  # whole episodes
    for name, expected in asked.items():
        found = getattr(metadata, name)
        if found is not None and found != expected:  # None: the file was attached
            raise DatasetError(
                f"{path}: collected with {name} {found}, the experiment asks for {expected}. Remove the file to "
                "collect it anew, set ",
                ("dataset", name),
                f" to {found}, or name the file itself in ",
                ("dataset", "file"),
                ".",
            )
