"""The files of a run folder as typed records: written and read again, of other versions, and of older programs."""

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from gems_ray import metrics
from gems_ray.checkpoints import read_checkpoint
from gems_ray.errors import RecordVersionError, RunFolderError
from gems_ray.evaluation.record import Evaluation, OfflineEvaluation
from gems_ray.execution.storage import CheckpointStorage
from gems_ray.experiments import records
from gems_ray.experiments.candidates import read_trials
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.progress import read_progress
from gems_ray.experiments.records import (
    CandidateRecord,
    Candidates,
    CellCheckpoint,
    CellDescription,
    CellResult,
    DatasetFacts,
    Datasets,
    FinalEvaluations,
    Fingerprints,
    References,
    RunningCells,
    StorageFacts,
    StudyFacts,
    TrackingFacts,
    TrialRecord,
    ValidationReturns,
)
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.record import Record, RecordPart, read_record, write_record
from gems_ray.results import curves, search, tables
from tests.unit.conftest import MACHINE, evaluation

BEFORE = Path(__file__).parent / "runs_before_records"
FACTS = DatasetFacts(file="a.npz", fingerprint="abc", transitions=400, world_fingerprint="w")
OFFLINE = OfflineEvaluation(
    fqe_value=30.5, fqe_se=0.25, fqe_spread=1.5, behavior_value=33.0, cloning_error=0.25, episodes=4
)
EXAMPLES = {
    "cell.yaml": CellDescription.of(check_experiment({"environment": "diffuse_mix"}).cells()[0]),
    "result.json": CellResult(
        status="finished",
        updates=60,
        seconds=0.5,
        best_updates=0,
        fingerprints=Fingerprints(dataset="abc", world="w"),
        report={"updates": 60, "eval/return_mean": 69.0},
        validation=ValidationReturns(last=69.0, best=71.75),
        offline=OFFLINE,
        test=FinalEvaluations(last=evaluation(56.0), best=evaluation(59.5)),
    ),
    "failed.json": CellResult(status="failed", updates=3, reason="a loss is not finite"),
    "0000.yaml": TrialRecord(
        algorithm="cql", settings={"hidden_sizes": [4, 4]}, params={"algorithm": "cql", "alpha": 1e-05}, cells=["a-b"]
    ),
    "checkpoint.json": CellCheckpoint(path="1/cell/checkpoint_000003", updates=50),
    "storage.json": StorageFacts(uri="s3://bucket/run"),
    "running.json": RunningCells(cells=["a"]),
    "tracking.json": TrackingFacts(run="123"),
    "candidates.json": Candidates(
        candidates=[CandidateRecord(label="bc default", trial=None, algorithm="bc", settings={}, cells=["a-b"])]
    ),
    "datasets.json": Datasets.model_validate({"diffuse_mix": FACTS}),
    "references.json": References(random=evaluation(1.0), oracle=evaluation(2.0), behavior=evaluation(3.0)),
    "study.json": StudyFacts(name="mine", storage=None, run="123"),
    "machine.json": MACHINE,
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_written_is_read_again(tmp_path, name):
    path, record = tmp_path / name, EXAMPLES[name]
    write_record(path, record)
    assert read_record(path, type(record)) == record
    if path.suffix == ".json":
        data = json.loads(path.read_text())
        assert next(iter(data.items())) == ("schema_version", 1)
        for known in ({key: value for key, value in data.items() if key != "schema_version"}, data | {"mood": {}}):
            if name != "datasets.json" or "mood" not in known:
                path.write_text(json.dumps(known))
                assert read_record(path, type(record)) == record


def models(kind):
    return {kind, *(model for child in kind.__subclasses__() for model in models(child))}


@pytest.mark.parametrize(
    "model", sorted(models(RecordPart), key=lambda model: model.__name__), ids=lambda m: m.__name__
)
def test_every_field_says_what_it_is(model):
    assert model.__doc__
    assert all(field.description for field in model.model_fields.values())


def test_every_record_has_an_example():
    written = {model for model in models(Record) if model.__module__ in (records.__name__, "gems_ray.machine")}
    assert written == {type(record) for record in EXAMPLES.values()}


def test_missing_is_not_damaged(tmp_path):
    assert read_record(tmp_path / "result.json", CellResult) is None
    assert read_record(tmp_path / "none" / "0000.yaml", TrialRecord) is None


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("text", ["", "[]", "3", '{"a": ', "a: [", "\x00", "{}\n{}", "[" * 100_000])
def test_damage_is_one_line_that_names_the_file(tmp_path, name, text):
    if (name, text) == ("datasets.json", "{}"):
        return
    path, kind = tmp_path / name, type(EXAMPLES[name])
    path.write_text(text)
    with pytest.raises(RunFolderError) as caught:
        read_record(path, kind)
    assert str(caught.value).startswith(f"{path}:")
    assert str(caught.value).endswith(kind.advice)
    assert len(str(caught.value).splitlines()) == 1


def test_damage_says_what_was_found(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"status": "finished"}')
    with pytest.raises(RunFolderError, match=r"result\.json: cannot be read \(`updates` is missing\)\. Remove it"):
        read_record(path, CellResult)
    path.write_text('{"status": "finished", "updates": "a\\nlot"}')
    with pytest.raises(RunFolderError, match=r"\(updates: Input should be a valid integer, found 'a\\nlot'\)"):
        read_record(path, CellResult)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(RunFolderError, match=r"result\.json: cannot be read"):
        read_record(path, CellResult)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_no_record_holds_a_number_that_is_not_finite(number):
    with pytest.raises(ValidationError):
        CellResult(status="finished", updates=1, report={"q": number})
    with pytest.raises(ValidationError):
        evaluation(number)
    with pytest.raises(ValidationError):
        ValidationReturns(last=1.0, best=number)


def test_numbers_of_numpy_become_plain_ones():
    import numpy as np

    result = CellResult(status="finished", updates=1, report={"q": np.float64(2.5)})
    assert type(result.report["q"]) is float


def test_a_later_version_is_one_clear_line_and_is_left_alone(run):
    cell = run.cells()[0]
    path = cell.path / "result.json"
    text = json.dumps({"schema_version": 2, "how": "another way"})
    path.write_text(text)
    with pytest.raises(RecordVersionError) as caught:
        cell.set_damaged_result_aside()
    assert str(caught.value) == (
        f"{path}: has schema version 2, this program knows versions up to 1. "
        "Read it with the gems_ray that wrote it, or a later one."
    )
    assert path.read_text() == text
    assert read_progress(run).cells[0].reason == str(caught.value)
    trial = run.path / "trials" / "0000.yaml"
    trial.parent.mkdir()
    trial.write_text("schema_version: 3\n")
    with pytest.raises(RecordVersionError, match=r"0000\.yaml: has schema version 3"):
        run.set_damaged_search_records_aside()
    assert trial.exists()


def test_all_metrics_of_all_cells(run):
    first, _, third = run.cells()
    first.append_metrics({metrics.STEP: 0, metrics.RETURN_MEAN: 40.0, metrics.Q_POLICY: math.nan})
    first.append_metrics({metrics.STEP: 50, metrics.RETURN_MEAN: 45.5, metrics.Q_POLICY: 3.0})
    third.append_metrics({metrics.STEP: 0, metrics.CLONING_ERROR: 0.5})
    frame = curves.metrics_frame(run)
    assert frame.columns.tolist() == [
        "cell", "environment", "algorithm", "seed",
        metrics.STEP, metrics.RETURN_MEAN, metrics.Q_POLICY, metrics.CLONING_ERROR,
    ]  # fmt: skip
    assert frame["cell"].tolist() == [first.path.name, first.path.name, third.path.name]
    assert frame["seed"].tolist() == [0, 0, 2]
    assert frame[metrics.STEP].tolist() == [0, 50, 0]
    assert frame[metrics.RETURN_MEAN].tolist()[:2] == [40.0, 45.5]
    assert frame[metrics.Q_POLICY].isna().tolist() == [True, False, True]
    assert all(dtype.kind in "if" for dtype in frame.dtypes[3:])


def test_no_metrics_yet(run):
    frame = curves.metrics_frame(run)
    assert len(frame) == 0
    assert frame.columns.tolist() == ["cell", "environment", "algorithm", "seed", metrics.STEP]


@pytest.fixture(params=["grid", "search"])
def before(request, tmp_path):
    """A run folder that was written before there were records, at another place."""
    return RunFolder.open(shutil.copytree(BEFORE / request.param, tmp_path / request.param))


def test_a_folder_of_before_has_its_numbers(before, tmp_path):
    assert read_progress(before).summary() == "4 finished."
    if before.experiment().search:
        written = [*search.export(before, tmp_path), tables.export_cells(before, tmp_path)]
    else:
        written = tables.export(before, tmp_path)
        with pytest.raises(RunFolderError, match="holds a grid, which has neither trials nor candidates"):
            search.trials_frame(before)
    for path in written:
        former = before.path / path.name
        if path.name == "cells.csv":  # rounded, and with the settings that differ
            now, then = pd.read_csv(path), pd.read_csv(former)
            assert [name for name in now.columns if name not in then] == ["alpha"]
            pd.testing.assert_frame_equal(now[list(then.columns)], then, check_dtype=False, rtol=0, atol=6e-4)
        elif path.name == "table.md":  # with its sources below
            assert path.read_text().startswith(
                former.read_text() + "\n- Cells: 4 (4 finished).\n- Seeds: 0, 1. Updates: 60."
            )
        else:
            assert path.read_bytes() == former.read_bytes(), path.name
    frame = curves.metrics_frame(before)
    assert len(frame) == sum(len(cell.metrics()) for cell in before.cells()) == 16
    assert frame.groupby("cell")[metrics.STEP].apply(list).tolist() == [[0, 30, 50, 60]] * 4
    machine = before.machine()
    assert (machine.schema_version, machine.gems_ray, machine.host) == (1, "0.1.0", "a-machine")
    assert before.references("diffuse_mix").behavior.return_mean == 285.8333333333333
    dataset = DatasetFacts(
        file="data/diffuse_mix_mixed.npz",
        fingerprint="e2137594fcfdee19",
        transitions=400,
        world_fingerprint="e5b30ae1221f5987",
    )
    before.check_datasets({"diffuse_mix": dataset})
    with pytest.raises(RunFolderError, match="began with dataset e2137594fcfdee19"):
        before.check_datasets({"diffuse_mix": dataset.model_copy(update={"fingerprint": "x"})})


def test_a_cell_of_before():
    cell = RunFolder.open(BEFORE / "grid").find_cell("td3_bc-seed0")
    description, result = cell.description, cell.result()
    assert (description.schema_version, description.algorithm, description.seed) == (1, "td3_bc", 0)
    assert description.settings == {"alpha": 1.0, "hidden_sizes": [4], "batch_size": 16}
    assert (description.training.max_timesteps, description.evaluation.holdout) == (60, 0.25)
    assert (result.status, result.updates, result.best_updates, result.seconds) == ("finished", 60, 0, 0.062)
    assert result.validation == ValidationReturns(last=69.0, best=71.75)
    assert (result.test.last.return_mean, result.test.best.return_mean) == (56.333333333333336, 59.5)
    assert (result.offline.fqe_value, result.offline.episodes) == (29.286221907099407, 1)
    assert isinstance(result.test.last, Evaluation)
    rows = cell.metrics()
    assert rows[-1] == result.report
    assert "train/critic_loss" not in rows[0]
    with CheckpointStorage(RunFolder(BEFORE / "grid").storage).fetched(cell.checkpoint()) as folder:
        assert read_checkpoint(folder / "last.safetensors")[1]["updates"] == 60


def test_cells_of_before_belong_to_their_experiment(before):
    """Nothing is trained again, and nothing is taken for another experiment's."""
    again = RunFolder.create(before.path, before.experiment(), MACHINE)
    assert not (before.path / "machine.json").exists()
    if not before.experiment().search:
        again.open_cells(before.experiment().cells())
    assert {cell.status for cell in again.cells()} == {"finished"}
    assert not list(before.path.rglob("*.damaged"))


def test_a_search_of_before():
    run = RunFolder.open(BEFORE / "search")
    trials = read_trials(run, ("return",))
    assert [(trial.number, trial.state, trial.values) for trial in trials] == [
        (0, "complete", (63.25,)), (1, "complete", (55.75,)), (2, "complete", (51.5,)),
    ]  # fmt: skip
    assert trials[1].params == {"alpha": 1.7123770056398382}
    (candidate,) = run.candidates()
    assert (candidate.label, candidate.trial) == ("td3_bc default", 0)
    frame = search.candidates_frame(run)
    assert frame.loc[0, ["search", "fresh_mean"]].tolist() == [63.25, 56.5]
    assert pd.isna(frame.loc[0, "fresh_std"])
    facts = read_record(run.path / "study.json", StudyFacts)
    assert (facts.name, facts.storage) == ("search", None)
