"""What the files of a run folder hold."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from gems_ray import metrics
from gems_ray.evaluation.record import Evaluation, OfflineEvaluation
from gems_ray.experiments.spec import Cell, DatasetSpec, EvaluationSpec, Resources, TrainingSpec
from gems_ray.record import Record, RecordPart

REFERENCE_POLICIES = ("random", "oracle", "behavior")  # weakest first

# A report by the names of gems_ray/metrics.py; what was not measured, or is not finite, is left out.
Report = dict[str, int | float]


_IN_EVERY_ROW = (metrics.STEP, metrics.SECONDS, metrics.UPDATES_PER_SECOND)


def evaluation_row(report: Mapping[str, Any]) -> Report:
    """What the last evaluation measured, from all that a cell reports; what is not finite is left out."""
    row = {**report, metrics.STEP: report[metrics.EVALUATED]}
    return {
        name: value
        for name, value in row.items()
        if (name in _IN_EVERY_ROW or name.startswith(("train/", "eval/"))) and math.isfinite(value)
    }


class CellDescription(Record):
    """cell.yaml: everything that determines a cell."""

    advice: ClassVar[str] = "Resume the run: that writes it anew."

    environment: str = Field(description="Name of the simulated environment.")
    algorithm: str = Field(description="Name of the algorithm.")
    seed: int = Field(description="Experiment seed.")
    settings: dict[str, Any] = Field(description="Settings of the algorithm that differ from its defaults.")
    world: str = Field(description="Name or folder of the world.")
    dataset: DatasetSpec = Field(description="What the cell is trained on.")
    training: TrainingSpec = Field(description="How long it is trained, and how.")
    evaluation: EvaluationSpec = Field(description="Who judges its policy.")
    resources: Resources = Field(Resources(), description="What it takes of a machine; no part of the result.")

    @classmethod
    def of(cls, cell: Cell) -> "CellDescription":
        """The description of a cell of an experiment."""
        return cls.model_validate(cell.describe())


class CellCheckpoint(Record):
    """checkpoint.json: where a cell that was interrupted goes on."""

    path: str = Field(description="Folder of the checkpoint, below the storage of the run's checkpoints.")
    updates: int = Field(ge=0, description="Gradient updates at its last report.")


class Fingerprints(RecordPart):
    """What a cell was trained and evaluated with."""

    dataset: str | None = Field(None, description="Fingerprint of the dataset.")
    world: str | None = Field(None, description="Fingerprint of the world; none for a foreign dataset.")


class ValidationReturns(RecordPart):
    """Clicks per episode of the validation users, who chose the best checkpoint."""

    last: float = Field(description="Of the last checkpoint, clicks per episode.")
    best: float = Field(description="Of the best checkpoint, clicks per episode.")


class FinalEvaluations(RecordPart):
    """What the test users made of two checkpoints."""

    last: Evaluation = Field(description="Of the last checkpoint.")
    best: Evaluation = Field(description="Of the checkpoint that the validation users chose.")


class CellResult(Record):
    """result.json: how a cell ended. What was not measured is null."""

    status: Literal["finished", "diverged", "pruned", "failed"] = Field(description="How it ended.")
    updates: int = Field(ge=0, description="Gradient updates until then.")
    engine: str | None = Field(
        None,
        description="How most of the updates ran: eager, compiled, graph, compiled_graph, pack or pack_graph.",
    )
    seconds: float | None = Field(None, description="Time of the training alone, seconds.")
    best_updates: int | None = Field(None, description="Gradient updates of the best checkpoint.")
    fingerprints: Fingerprints = Field(Fingerprints(), description="Of the dataset and the world.")
    report: Report = Field({}, description="The last report, by the names of gems_ray/metrics.py.")
    validation: ValidationReturns | None = Field(None, description="Returns with the validation users.")
    offline: OfflineEvaluation | None = Field(None, description="What held-out episodes say of the last checkpoint.")
    test: FinalEvaluations | None = Field(None, description="What the test users made of the policies.")
    reason: str | None = Field(None, description="Why it was pruned, has failed, or ended before its time.")

    @classmethod
    def of(cls, report: Mapping[str, Any], fingerprints: Fingerprints) -> "CellResult":
        """The result of a cell that was trained and tested to its end.

        Args:
            report: its last one, by the names of gems_ray/metrics.py.
            fingerprints: of dataset and world.
        """
        row = evaluation_row(report)
        validation, offline, test = None, None, None
        if metrics.RETURN_MEAN in row:
            validation = ValidationReturns(last=row[metrics.RETURN_MEAN], best=row[metrics.BEST_RETURN])
        if metrics.offline("fqe_value") in report:
            offline = OfflineEvaluation(
                **{name: report[metrics.offline(name)] for name in OfflineEvaluation.model_fields}
            )
        if metrics.test("last", "users") in report:
            last, best = (
                Evaluation(**{name: report[metrics.test(kind, name)] for name in Evaluation.model_fields})
                for kind in ("last", "best")
            )
            test = FinalEvaluations(last=last, best=best)
        return cls(
            status=report[metrics.STATUS],
            updates=report[metrics.EVALUATED],
            engine=report.get(metrics.ENGINE),
            seconds=row[metrics.SECONDS],
            best_updates=report[metrics.BEST_UPDATES],
            fingerprints=fingerprints,
            report=row,
            validation=validation,
            offline=offline,
            test=test,
            reason=report[metrics.REASON] or None,
        )


class TrialRecord(Record):
    """trials/NUMBER.yaml: a trial of a search."""

    advice: ClassVar[str] = "Remove the file and resume the run."

    algorithm: str = Field(description="Name of the algorithm.")
    settings: dict[str, Any] = Field(description="Settings of the algorithm that differ from its defaults.")
    params: dict[str, Any] = Field(description="What was searched, under the names of the study.")
    cells: list[str] = Field(description="Names of its cells.")


class CandidateRecord(RecordPart):
    """Settings that a search trains again on fresh seeds."""

    label: str = Field(description="`td3_bc default` or `trial 7`.")
    trial: int | None = Field(None, description="Number of the trial that proposed them.")
    algorithm: str = Field(description="Name of the algorithm.")
    settings: dict[str, Any] = Field(description="Settings of the algorithm that differ from its defaults.")
    cells: list[str] = Field(description="Names of its cells.")


class Candidates(Record):
    """candidates.json: written when all trials have ended."""

    candidates: list[CandidateRecord] = Field(description="The defaults of every algorithm, then the best trials.")


class DatasetFacts(RecordPart):
    """The dataset of an environment."""

    file: str = Field(description="Path of the file when the run began.")
    fingerprint: str = Field(description="Fingerprint of the dataset.")
    transitions: int = Field(description="Transitions in the file.")
    world_fingerprint: str | None = Field(None, description="Of the world it was collected in; none if foreign.")
    logged_return: float | None = Field(None, description="Mean return of the episodes, clicks; none if foreign.")


class Datasets(Record):
    """datasets.json: the dataset of every environment, under the environment's name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, DatasetFacts]

    @property
    def by_environment(self) -> dict[str, DatasetFacts]:
        """The facts by the name of the environment."""
        return self.__pydantic_extra__


class References(Record):
    """references/ENVIRONMENT.json: what the test users made of the reference policies."""

    random: Evaluation = Field(description="Of random slates.")
    oracle: Evaluation = Field(description="Of the short-term oracle.")
    behavior: Evaluation | None = Field(None, description="Of the behaviour agent, mean actions; none in some worlds.")

    @property
    def by_policy(self) -> dict[str, Evaluation]:
        """The evaluations by the name of the policy, weakest first."""
        played = {name: getattr(self, name) for name in REFERENCE_POLICIES}
        return {name: evaluation for name, evaluation in played.items() if evaluation is not None}


class StorageFacts(Record):
    """storage.json: where the checkpoints are, if not in the run folder."""

    uri: str = Field(description="Below which they lie, such as s3://bucket/run.")


class RunningCells(Record):
    """running.json: what is being trained, while a run goes on."""

    cells: list[str] = Field(description="Names of the cells.")


class StudyFacts(Record):
    """study.json: where the Optuna study of a search is."""

    name: str = Field(description="Name of the study.")
    storage: str | None = Field(None, description="URL of its database without the password; none for the run folder.")
    run: str = Field(description="What marks this run's trials in the study.")


class TrackingFacts(Record):
    """tracking.json: what marks a run in the trackers that its experiment names."""

    run: str = Field(description="What marks its cells there, so that they go on in the same runs of a tracker.")
