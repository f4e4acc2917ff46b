"""What an experiment is: a YAML file that spells out a grid of cells."""

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gems_ray.config import Config, YamlDocument, plain, read_yaml, validate
from gems_ray.errors import UnknownNameError
from gems_ray.simulator.environments import ENVIRONMENTS

Quality = Literal["random", "medium", "expert", "mixed"]


def _as_list(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


OneOrMore = BeforeValidator(_as_list)


class DatasetSpec(Config):
    """Which dataset the cells of an environment are trained on."""

    quality: Quality = Field("expert", description="Behaviour policy that logged it.")
    episodes: int = Field(10_000, ge=1, description="Episodes that are collected where the file is missing.")
    seed: int = Field(0, ge=0, description="Seed of the collection.")
    expert_share: float = Field(1 / 3, ge=0, le=1, description="Share of expert episodes in mixed data.")
    deterministic: bool = Field(False, description="Log the agent's mean action in place of a sample.")
    folder: str = Field("offline_datasets", description="Folder of the collected files.")
    file: str | None = Field(None, description="An npz of your own, in place of the environment's.")


class Divergence(Config):
    """When a run counts as diverged: its values have left what the rewards can pay, and stay there."""

    factor: float = Field(3.0, ge=1, description="Mean Q beyond this multiple of the return-to-go bound ...")
    reports: int = Field(3, ge=1, description="... in this many reports in a row.")


class TrainingSpec(Config):
    """How long a cell is trained and how often it is evaluated."""

    max_timesteps: int = Field(1_000_000, ge=1, description="Gradient updates.")
    evaluation_interval: int = Field(
        5_000, ge=1, description="Updates between evaluations (CORL); the first 1,000 updates are evaluated more often."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is a GPU.")
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile updates; auto does on CUDA, and on CPUs for 100,000 updates and more."
    )
    divergence: Divergence = Divergence()


class EvaluationSpec(Config):
    """How many simulated users judge a policy."""

    validation_users: int = Field(200, ge=2, description="They choose the best checkpoint during training.")
    test_users: int = Field(1_000, ge=2, description="They make the result table; never the validation users.")


class Resources(Config):
    """What a cell takes of a machine."""

    cpu: float = Field(1, gt=0, description="CPU cores; torch uses as many threads, at least one.")
    gpu: float = Field(0, ge=0, description="Share of a GPU; ignored where there is none.")


class Experiment(Config):
    """A grid: every algorithm in every environment with every seed."""

    environment: Annotated[tuple[str, ...], OneOrMore] = Field(min_length=1, description="Environment names.")
    algorithm: Annotated[tuple[str, ...], OneOrMore] = Field(("td3_bc",), min_length=1, description="Algorithm names.")
    seed: Annotated[tuple[Annotated[int, Field(ge=0)], ...], OneOrMore] = Field(
        (0,), min_length=1, description="Experiment seeds."
    )
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="By algorithm, the settings that differ from its defaults."
    )
    worlds: dict[str, str] = Field(
        default_factory=dict, description="By environment, a world bundle in place of the shipped one."
    )
    dataset: DatasetSpec = DatasetSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _names_are_known(self) -> "Experiment":
        for names in (self.environment, self.algorithm, self.seed):
            if len(set(names)) != len(names):
                raise ValueError(f"every value may stand once, found {', '.join(map(str, names))}")
        return self

    def cells(self) -> list["Cell"]:
        """All cells, environments first, then algorithms, then seeds."""
        return [
            Cell(environment, algorithm, seed, self)
            for environment, algorithm, seed in itertools.product(self.environment, self.algorithm, self.seed)
        ]

    def world(self, environment: str) -> str:
        """Name or folder of the world of an environment."""
        return self.worlds.get(environment, environment)


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment of a grid: an algorithm, trained in one environment's data with one seed."""

    environment: str
    algorithm: str
    seed: int
    experiment: Experiment

    @property
    def settings(self) -> dict[str, Any]:
        """The algorithm's settings that differ from its defaults."""
        return self.experiment.settings.get(self.algorithm, {})

    @property
    def name(self) -> str:
        """Short, readable, and different for every setting that changes the result."""
        experiment = self.experiment.model_dump(mode="json", exclude={"environment", "algorithm", "seed", "resources"})
        text = json.dumps([experiment | {"settings": self.settings}], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:6]
        return f"{self.environment}-{self.algorithm}-seed{self.seed}-{digest}"

    def describe(self) -> dict[str, Any]:
        """Everything that determines the cell, as plain data."""
        experiment = self.experiment
        return {
            "environment": self.environment,
            "algorithm": self.algorithm,
            "seed": self.seed,
            "settings": plain(self.settings),
            "world": experiment.world(self.environment),
            **experiment.model_dump(mode="json", include={"dataset", "training", "evaluation", "resources"}),
        }


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment file and checks every name and setting in it.

    Raises:
        ConfigError: one line per mistake, with file, line and key.
    """
    document = read_yaml(path)
    return check_experiment(document.data, document)


def check_experiment(data: Mapping[str, Any], document: YamlDocument | None = None) -> Experiment:
    """Turns plain data into an experiment; environments, algorithms and their settings must exist.

    Raises:
        ConfigError: one line per mistake.
    """
    from gems_ray.algorithms import ALGORITHMS  # torch: not needed to read results

    experiment = validate(data, Experiment, document)
    _check_names("environment", experiment.environment, ENVIRONMENTS, document)
    _check_names("worlds", tuple(experiment.worlds), ENVIRONMENTS, document)
    _check_names("algorithm", experiment.algorithm, ALGORITHMS, document)
    _check_names("settings", tuple(experiment.settings), ALGORITHMS, document)
    for algorithm, settings in experiment.settings.items():
        validate(settings, ALGORITHMS[algorithm].Config, document, prefix=("settings", algorithm))
    return experiment


def _check_names(key: str, names: tuple[str, ...], known: Mapping[str, Any], document: YamlDocument | None) -> None:
    for index, name in enumerate(names):
        try:
            known[name]
        except UnknownNameError as error:
            if document is None:
                raise
            value = document.data.get(key)
            location = (key, name) if isinstance(value, dict) else (key, index) if isinstance(value, list) else (key,)
            raise document.error(location, str(error)) from None
