"""What an experiment is: a YAML file that spells out a grid of cells, or a search among settings."""

import hashlib
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import parse_qs, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from gems_ray.config import Config, blame
from gems_ray.errors import Mistake, ResourceError
from gems_ray.experiments.space import Domain, Space
from gems_ray.yaml_file import plain

LARGEST_GRID = 100_000  # cells, or points of a search: all of them are listed

Quality = Literal["random", "medium", "expert", "mixed", "medium_expert", "medium_replay"]


def _as_list(value: Any) -> Any:
    """A single value stands for a list of one."""
    return value if isinstance(value, list | tuple) else [value]


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        again, _ = Counter(values).most_common(1)[0]
        raise ValueError(f"every value may stand once, found {again} a second time")
    return values


def _by_algorithm(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("expected the settings by algorithm, for example {td3_bc: {alpha: 1}}")
    return value


OneOrMore, Different = BeforeValidator(_as_list), AfterValidator(_different)
Names = Annotated[tuple[str, ...], OneOrMore, Different]
Settings = Annotated[dict[str, Any], BeforeValidator(_by_algorithm)]


class DatasetSpec(Config):
    """Which dataset the cells of an environment are trained on."""

    quality: Quality = Field("expert", description="Behaviour policy that logged it.")
    episodes: int = Field(
        10_000, ge=1, le=1_000_000, description="Episodes that are collected where the file is missing."
    )
    seed: int = Field(0, ge=0, description="Seed of the collection.")
    expert_share: float = Field(1 / 3, ge=0, le=1, description="Share of expert episodes in mixed data.")
    deterministic: bool = Field(False, description="Log the agent's mean action in place of a sample.")
    folder: str = Field("offline_datasets", description="Folder of the collected files.")
    file: str | None = Field(None, description="An npz of your own, in place of the environment's.")


class Divergence(Config):
    """When a run counts as diverged: its mean Q is far above what the rewards can pay, and stays there."""

    factor: float = Field(3.0, ge=1, description="Mean Q beyond this multiple of the return-to-go bound ...")
    reports: int = Field(3, ge=1, description="... in this many reports in a row.")


class TrainingSpec(Config):
    """How long a cell is trained and how often it is evaluated."""

    max_timesteps: int = Field(1_000_000, ge=1, le=1_000_000_000, description="Gradient updates.")
    evaluation_interval: int = Field(
        5_000,
        ge=1,
        le=1_000_000_000,
        description="Updates between evaluations (CORL); the first 1,000 updates are evaluated more often.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes CUDA where there is a GPU.")
    compile: Literal["auto", "on", "graph", "off"] = Field(
        "auto",
        description="on: torch's compiler; graph: CUDA graphs without it; off: neither. auto compiles runs of 100,000 "
        "updates and more, on CPUs only if the updates are short, and takes graphs for the others on CUDA.",
    )
    matmul_precision: Literal["highest", "high"] = Field(
        "highest", description="Of float32 matrix products on a GPU; high is TF32: faster, with 10 bits in place of 23."
    )
    divergence: Divergence = Divergence()


class EvaluationSpec(Config):
    """How many simulated users judge a policy."""

    validation_users: int = Field(200, ge=2, le=100_000, description="They choose the best checkpoint during training.")
    test_users: int = Field(
        1_000,
        ge=0,
        le=100_000,
        description="They make the result table; never the validation users. 0 leaves the test out.",
    )
    holdout: float = Field(
        0.0, ge=0, lt=1, description="Share of the episodes that is kept from training for the offline estimate."
    )

    @model_validator(mode="after")
    def _two_users_make_a_deviation(self) -> "EvaluationSpec":
        if self.test_users == 1:
            raise blame(Mistake(("test_users",), expected="expected 0, or 2 and more"))
        return self


AUTOMATIC_PACK = 9  # cells; measured nowhere yet
SMALLEST_SHARE = 0.01  # of a CPU or GPU; a hundred cells on one are more than it can hold


class Resources(Config):
    """What a cell takes of a machine."""

    cpu: float = Field(1, ge=SMALLEST_SHARE, description="CPU cores; torch uses as many threads, at least one.")
    gpu: float = Field(0, ge=0, description="Share of a GPU, 1 at most; ignored where there is none.")
    mps: bool = Field(False, description="Start NVIDIA's MPS with the run, so that cells that share a GPU overlap.")
    pack: Annotated[int, Field(ge=1, le=1_000)] | Literal["auto"] = Field(
        1, description="Cells that are trained as one program on these resources; auto packs on GPUs only."
    )

    @model_validator(mode="after")
    def _ray_can_schedule_it(self) -> "Resources":
        if 0 < self.gpu < SMALLEST_SHARE:
            expected = f"expected 0, or {SMALLEST_SHARE} and more"
            raise blame(Mistake(("gpu",), expected=expected, found=f"{self.gpu:g}"))
        if self.gpu > 1 and self.gpu != int(self.gpu):  # a whole number may stand in the folder of an older run
            raise blame(Mistake(("gpu",), expected="expected a share up to 1", found=f"{self.gpu:g}"))
        return self

    @property
    def cells_per_pack(self) -> int:
        """How many cells are trained as one program."""
        if self.pack == "auto":
            return AUTOMATIC_PACK if self.gpu else 1  # batched products gain nothing on a CPU
        return self.pack

    def cells_on(self, cpus: float, gpus: float) -> int:
        """How many cells, or packs of cells, a node with so many CPUs and GPUs holds at once."""
        by_cpu = int(cpus / self.cpu + 1e-9)
        if not self.gpu:
            return by_cpu
        # A share below one stays on one GPU; whole GPUs are taken together.
        by_gpu = int(gpus) * int(1 / self.gpu + 1e-9) if self.gpu <= 1 else int(gpus / self.gpu + 1e-9)
        return min(by_cpu, by_gpu)

    def usable_on(
        self, nodes: Sequence[tuple[float, float]], say: Callable[[str], None], device: str = "auto"
    ) -> "Resources":
        """The resources of a cell on a cluster: without the GPU where there is none, or where it would not be used.

        Args:
            nodes: CPUs and GPUs of each node.
            say: called with a line for the user.
            device: auto, cpu or cuda, on which the cells are trained.
        Raises:
            ResourceError: no node is large enough, so that the cell would wait for ever, or none has the GPU that the
                cells must have.
        """
        usable, without = self, {"gpu": 0.0, "mps": False}
        if self.gpu and device == "cpu":
            say(f"resources.gpu {self.gpu:g} is ignored: training.device is cpu.")
            usable = self.model_copy(update=without)
        elif self.gpu and not any(gpus for _, gpus in nodes):
            if device == "cuda":
                raise ResourceError("training.device is cuda, and no GPU is here. Set training.device to auto or cpu.")
            say(f"resources.gpu {self.gpu:g} is ignored: no GPU here, the cells run on CPUs.")
            usable = self.model_copy(update=without)
        if usable.mps and not usable.gpu:
            say("resources.mps is ignored: no cell has a share of a GPU.")
            usable = usable.model_copy(update=without)
        if not any(usable.cells_on(*node) for node in nodes):
            cpus, gpus = max(nodes)
            raise ResourceError(
                f"resources: a cell asks for {usable.cpu:g} CPUs and {usable.gpu:g} GPUs, the largest node has "
                f"{cpus:g} and {gpus:g}. Lower `resources` in the experiment file."
            )
        return usable


class TrackingSpec(Config):
    """Where the cells are shown besides the run folder; no part of the result."""

    mlflow: str | None = Field(
        None, description="URI of an MLflow store, sqlite:///mlflow.db or http://host:5000, without a password."
    )
    wandb: str | None = Field(
        None, description="Project of Weights & Biases; written offline unless WANDB_MODE is online."
    )

    @field_validator("mlflow")
    @classmethod
    def _can_stand_in_the_run_folder(cls, uri: str | None) -> str | None:
        if uri is None:
            return uri
        if "://" not in uri:
            expected = "expected a URI such as sqlite:///mlflow.db or http://host:5000"
            raise blame(Mistake(expected=expected, found=f"`{uri}`"))
        parts = urlsplit(uri)
        if "@" in parts.netloc or "password" in parse_qs(parts.query):
            advice = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment give them to a server."
            raise blame(Mistake(expected="expected a URI without user and password", advice=advice))
        return uri

    @field_validator("wandb")
    @classmethod
    def _is_the_name_of_a_project(cls, project: str | None) -> str | None:
        if project is not None and not re.fullmatch(r"[\w.-]+", project):
            expected = "expected the name of a project: letters, digits, `-`, `_` and `.`"
            raise blame(Mistake(expected=expected, found=f"`{project}`"))
        return project


class Asha(Config):
    """Early stopping: at each rung, only the best share of the trials goes on (Li et al. 2020)."""

    grace_updates: int = Field(1_000, ge=1, description="Updates before the first trial can be stopped.")
    reduction_factor: int = Field(4, ge=2, description="One of so many trials goes on at each rung.")


class Confirmation(Config):
    """What is trained again on fresh seeds and scored on test users, so that luck in the search shows."""

    candidates: int = Field(
        3, ge=0, le=1_000, description="Best trials on the validation users; the default settings join them."
    )
    seeds: int = Field(3, ge=1, le=1_000, description="Fresh seeds of each.")

    def planned(self, algorithms: int) -> int:
        """Cells per environment, at most: the best trials, and the default settings of so many algorithms."""
        return (self.candidates + algorithms) * self.seeds if self.candidates else 0


Objective = Literal["return", "best_return", "slate_diversity", "topic_entropy", "coverage", "fqe"]


class SearchSpec(Config):
    """A search among the settings of one or several algorithms."""

    space: dict[str, dict[str, Domain]] = Field(description="By algorithm and setting, the values to choose among.")
    trials: int = Field(20, ge=1, le=100_000, description="Settings to try; a grid tries all of its points.")
    sampler: Literal["tpe", "gp", "random", "grid"] = Field("tpe", description="What proposes the next settings.")
    objectives: Annotated[tuple[Objective, ...], OneOrMore, Different] = Field(
        (), description="What is maximised, several as a Pareto front [default: return; fqe where there is no world]."
    )
    initial: tuple[dict[str, Any], ...] = Field((), description="Settings tried first, after the defaults.")
    seeds_per_trial: int = Field(1, ge=1, le=1_000, description="A trial is the mean over so many seeds.")
    asha: Asha | None = Field(None, description="Early stopping; off unless given.")
    confirm: Confirmation = Confirmation()

    @model_validator(mode="after")
    def _parts_fit(self) -> "SearchSpec":
        if not any(self.space.values()):
            raise ValueError("`space` has no setting to search")
        if self.asha and (self.seeds_per_trial > 1 or len(self.objectives) > 1 or "fqe" in self.objectives):
            raise ValueError("`asha` compares single runs by one objective that is measured on the way")
        if self.sampler == "grid":
            points = sum(math.prod(domain.count() for domain in domains.values()) for domains in self.space.values())
            if points > LARGEST_GRID:
                expected = f"a grid of {points:,} points, expected at most {LARGEST_GRID:,}"
                raise blame(Mistake(("sampler",), expected=expected))
        return self


class Experiment(Config):
    """A grid: every algorithm in every environment with every seed. With `search`, a search among settings."""

    called: ClassVar[str] = "an experiment"

    environment: Names = Field(min_length=1, description="Environment names.")
    algorithm: Names = Field(("td3_bc",), min_length=1, description="Algorithm names.")
    seed: Annotated[tuple[Annotated[int, Field(ge=0)], ...], OneOrMore, Different] = Field(
        (0,), min_length=1, description="Experiment seeds."
    )
    settings: dict[str, Settings] = Field(
        default_factory=dict, description="By algorithm, the settings that differ from its defaults."
    )
    worlds: dict[str, str] = Field(
        default_factory=dict, description="By environment, a world bundle in place of the shipped one."
    )
    dataset: DatasetSpec = DatasetSpec()
    training: TrainingSpec = TrainingSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    resources: Resources = Resources()
    tracking: TrackingSpec = TrackingSpec()
    search: SearchSpec | None = Field(None, description="What `search` tries; a grid has none.")
    imports: dict[str, str] = Field(
        default_factory=dict,
        description="By algorithm from outside the package, the import path of its class, `package.module:Class`.",
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> "Experiment":
        numbers = [len(self.environment), len(self.algorithm), len(self.seed)]
        if (cells := math.prod(numbers)) > LARGEST_GRID:
            factors = "{:,} x {:,} x {:,}".format(*numbers)
            expected = f"environments x algorithms x seeds, {factors}, are {cells:,} cells, expected at most"
            advice = "Make several files of it."
            raise blame(Mistake(("seed",), expected=f"{expected} {LARGEST_GRID:,}", advice=advice))
        if self.search and len(self.seed) > 1:
            expected = "a search begins at one `seed`; search.seeds_per_trial says how many a trial has"
            raise blame(Mistake(("seed",), expected=expected))
        if self.search and self.search.asha and len(self.environment) > 1:
            raise blame(Mistake(("search", "asha"), problem="compares single runs: one environment"))
        return self

    @property
    def planned_trials(self) -> int:
        """How many trials a search has; given points that are not on its grid come on top."""
        assert self.search is not None
        if self.search.sampler == "grid":
            return len(list(Space(search_domains(self)).every_point()))
        return self.search.trials

    def as_yaml(self) -> dict[str, Any]:
        """Plain data that stands for the experiment in a file."""
        unused = {name for name in ("search", "imports") if not getattr(self, name)}
        unused |= {"tracking"} if self.tracking == TrackingSpec() else set()
        data = self.model_dump(mode="json", by_alias=True, exclude=unused)
        if self.search:
            data["search"]["space"] = self.search.model_dump(mode="json", by_alias=True, exclude_none=True)["space"]
        return data

    def with_settings(self, algorithm: str, settings: Mapping[str, Any], seeds: Sequence[int], test: bool) -> Self:
        """The grid of one algorithm with these settings, part of a search.

        Args:
            algorithm: its name.
            settings: that differ from its defaults.
            seeds: experiment seeds.
            test: whether the test users score it.
        """
        evaluation = self.evaluation if test else self.evaluation.model_copy(update={"test_users": 0})
        update = {
            "algorithm": (algorithm,),
            "settings": {algorithm: dict(settings)} if settings else {},
            "seed": tuple(seeds),
            "evaluation": evaluation,
            "search": None,
        }
        return self.model_copy(update=update)

    def cells(self) -> list["Cell"]:
        """All cells, environments first, then algorithms, then seeds."""
        common = without_later_defaults(self.model_dump(mode="json", exclude=_NOT_IN_THE_HASH))
        digests = {algorithm: _digest(common, self.settings.get(algorithm, {})) for algorithm in self.algorithm}
        return [
            Cell(environment, algorithm, seed, self, f"{environment}-{algorithm}-seed{seed}-{digests[algorithm]}")
            for environment, algorithm, seed in itertools.product(self.environment, self.algorithm, self.seed)
        ]

    def world(self, environment: str) -> str:
        """Name or folder of the world of an environment."""
        return self.worlds.get(environment, environment)


def without_later_defaults(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of an experiment as they were before there was a choice, so that names and fingerprints of them stay.

    Args:
        facts: plain data; changed in place.
    """
    if facts["training"].get("matmul_precision") == "highest":
        del facts["training"]["matmul_precision"]
    return facts


# In the name already, or without influence on the result beyond rounding (resources.cpu sets torch's threads).
_NOT_IN_THE_HASH = {"environment", "algorithm", "seed", "resources", "tracking", "search", "imports"}


@dataclass(frozen=True, slots=True)
class Cell:
    """One experiment of a grid: an algorithm, trained in one environment's data with one seed.

    Args:
        environment: its name.
        algorithm: its name.
        seed: of the experiment's seeds.
        experiment: the grid.
        name: short, readable, and different for every setting that changes the result.
    """

    environment: str
    algorithm: str
    seed: int
    experiment: Experiment
    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """The algorithm's settings that differ from its defaults."""
        return self.experiment.settings.get(self.algorithm, {})

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


def _digest(common: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What tells the cells of one algorithm from those of other experiments."""
    text = json.dumps([{**common, "settings": settings}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def search_domains(experiment: Experiment) -> dict[str, dict[str, Domain]]:
    """By algorithm, in the order of the experiment, the domains of its settings; none where it is tried as is."""
    assert experiment.search is not None
    return {algorithm: experiment.search.space.get(algorithm, {}) for algorithm in experiment.algorithm}
