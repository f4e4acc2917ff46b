"""The run folder on disk: locks, damage of every kind, folders of other experiments and other accounts."""

import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from gems_ray.errors import RunFolderError
from gems_ray.experiments.candidates import with_objectives
from gems_ray.experiments.cell_folder import DIVERGED, FAILED, FINISHED, RUNNING
from gems_ray.experiments.check import check_experiment, load_experiment
from gems_ray.experiments.progress import read_cell, read_progress
from gems_ray.experiments.records import REFERENCE_POLICIES, CellDescription, CellResult, DatasetFacts
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.cells import cells_frame
from gems_ray.yaml_file import _parse_part
from tests.unit.conftest import MACHINE, evaluation, make_run

NOBODY = 65534


def test_a_run_can_be_taken_once(run):
    with run.locked():
        assert run.is_locked()
        assert read_progress(run).running
        with pytest.raises(RunFolderError, match="a run is going on in this folder"), run.locked():
            pass
        assert run.is_locked()
    assert not run.is_locked()
    with run.locked():
        pass
    assert not read_progress(run).running


def test_the_lock_ends_with_an_error(run):
    with pytest.raises(KeyError), run.locked():
        raise KeyError
    assert not run.is_locked()


def test_find_cell(run):
    names = [cell.path.name for cell in run.cells()]
    assert run.find_cell(names[1]).path.name == names[1]
    assert run.find_cell("seed2").path.name == names[2]
    with pytest.raises(RunFolderError, match="several cells' names contain `seed`") as caught:
        run.find_cell("seed")
    assert all(name in str(caught.value) for name in names)
    with pytest.raises(RunFolderError, match="no cell's name contains `seed7`") as caught:
        run.find_cell("seed7")
    assert all(name in str(caught.value) for name in names)


def test_an_exact_name_comes_before_a_part(run):
    name = run.cells()[0].path.name
    longer = run.cell(f"{name}-more")
    longer.path.mkdir()
    (longer.path / "cell.yaml").write_text("seed: 0\n")
    assert run.find_cell(name).path.name == name


def test_find_cell_in_a_run_without_cells(tmp_path):
    run = RunFolder.create(tmp_path / "empty", check_experiment({"environment": "diffuse_mix"}), MACHINE)
    with pytest.raises(RunFolderError, match="Cells: none"):
        run.find_cell("seed")


def test_a_run_goes_on_with_the_same_datasets(run):
    first = DatasetFacts(file="a.npz", fingerprint="abc", transitions=400, world_fingerprint="w")
    run.check_datasets({"diffuse_mix": first})
    run.check_datasets({"diffuse_mix": first})
    second = DatasetFacts(file="b.npz", fingerprint="xyz", transitions=100, world_fingerprint=None)
    run.check_datasets({"diffuse_divpen": second})
    facts = {"schema_version": 1, "diffuse_mix": first.model_dump(), "diffuse_divpen": second.model_dump()}
    assert json.loads((run.path / "datasets.json").read_text()) == facts
    run.check_datasets({"diffuse_mix": first.model_copy(update={"file": "elsewhere.npz"})})
    changed = {"diffuse_mix": first.model_copy(update={"fingerprint": "def"})}
    with pytest.raises(RunFolderError, match=r"began with dataset abc of diffuse_mix, but a\.npz is now def"):
        run.check_datasets(changed)
    assert json.loads((run.path / "datasets.json").read_text()) == facts


def test_a_damaged_result_is_set_aside(run):
    cell = run.cells()[0]
    cell.append_metrics({"updates": 100, "seconds": 2.0})
    path = cell.path / "result.json"
    path.write_text('{"status": "fin')
    with pytest.raises(RunFolderError, match=r"result\.json: cannot be read"):
        cell.result()
    state = read_cell(cell)
    assert (state.state, state.updates) == ("unfinished", 100)
    assert "result.json" in state.reason
    cell.set_damaged_result_aside()
    assert cell.result() is None
    assert cell.status == "unfinished"
    assert (cell.path / "result.json.damaged").read_text() == '{"status": "fin'
    cell.write_result(CellResult(status=FINISHED, updates=1))
    cell.set_damaged_result_aside()
    assert cell.status == FINISHED


def test_only_failed_cells_open_again(run):
    first, second, third = run.cells()
    first.write_result(CellResult(status=FAILED, updates=1))
    second.write_result(CellResult(status=DIVERGED, updates=1))
    for cell in (first, second, third):
        cell.reopen()
    assert [cell.status for cell in run.cells()] == ["pending", DIVERGED, "pending"]


def test_a_torn_last_line_is_left_out(run):
    cell = run.cells()[0]
    assert cell.metrics() == []
    for updates in (100, 200):
        cell.append_metrics({"updates": updates, "seconds": updates / 10, "loss": float("nan")})
    whole = (cell.path / "metrics.csv").read_bytes()
    rows = [{"updates": 100, "seconds": 10.0}, {"updates": 200, "seconds": 20.0}]
    assert cell.metrics() == rows
    for torn in (b"300", b"300,30.0,", "300,é".encode()[:-1]):
        (cell.path / "metrics.csv").write_bytes(whole + torn)
        assert cell.metrics() == rows
        assert read_cell(cell).report == {"updates": 200, "seconds": 20}
    (cell.path / "metrics.csv").write_bytes(whole + b"300,30.0\n400,40.0,\n")
    assert [row["updates"] for row in cell.metrics()] == [100, 200, 400]
    (cell.path / "metrics.csv").write_bytes(b"updates,sec")
    assert cell.metrics() == []
    assert read_cell(cell).report == {}


def test_rows_beyond_a_checkpoint_are_dropped(run):
    cell = run.cells()[0]
    for updates in (100, 200, 300):
        cell.append_metrics({"updates": updates, "seconds": 1.5})
    with (cell.path / "metrics.csv").open("a") as file:
        file.write("400,")
    cell.keep_metrics_until(200)
    cell.append_metrics({"updates": 300, "seconds": 9.0})
    assert [(row["updates"], row["seconds"]) for row in cell.metrics()] == [
        (100, 1.5), (200, 1.5), (300, 9.0),
    ]  # fmt: skip
    cell.keep_metrics_until(0)
    assert not (cell.path / "metrics.csv").exists()
    assert cell.status == "pending"


def test_the_log_of_a_cell(run):
    cell = run.cells()[0]
    cell.add_log("a line")
    assert cell.log.read_text().endswith("INFO    a line\n")


def test_a_damaged_description_names_the_file(run):
    (run.cells()[1].path / "cell.yaml").write_text("seed: [0\n")
    assert "cell.yaml:" in read_progress(run).cells[1].reason
    (run.cells()[1].path / "cell.yaml").write_text("seed: 1\n")
    assert "is missing" in read_progress(run).cells[1].reason
    experiment = check_experiment(
        {"environment": "diffuse_mix", "seed": [0, 1, 2], "training": {"max_timesteps": 1000}}
    )
    run.add_cells(experiment.cells())
    assert len(read_progress(run).cells) == 3


def test_what_is_alike_in_all_cells_is_parsed_once(tmp_path):
    run = make_run(tmp_path / "run", seed=list(range(1_000_000, 1_000_020)), training={"max_timesteps": 1234})
    first, *others = run.cells()
    assert first.description.training.max_timesteps == 1234
    before = _parse_part.cache_info().misses
    assert [cell.description.seed for cell in others] == list(range(1_000_001, 1_000_020))
    assert _parse_part.cache_info().misses == before + len(others), "the line of the seed alone"


def test_only_another_description_is_written_anew(run):
    """Also one that Python takes for equal."""
    first, second, third = (cell.path / "cell.yaml" for cell in run.cells())
    text = first.read_text()
    first.write_text(f"# mine\n{text}")
    second.write_text(second.read_text().replace("max_timesteps: 1000", "max_timesteps: 2000"))
    third.write_text("seed: [0\n")
    run.add_cells(run.experiment().cells())
    assert first.read_text() == f"# mine\n{text}"
    assert "max_timesteps: 1000" in second.read_text()
    assert [cell.description.seed for cell in run.cells()] == [0, 1, 2]
    (one,), (other,) = (
        check_experiment({"environment": "diffuse_mix", "settings": {"td3_bc": {"alpha": alpha}}}).cells()
        for alpha in (1, 1.0)
    )
    run.add_cells([one])
    assert run.cell(one.name).description == CellDescription.of(other)
    assert not run.cell(one.name).is_described_as(CellDescription.of(other))


def test_no_run_here(tmp_path):
    with pytest.raises(RunFolderError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_folder_of_something_else_is_refused(run, tmp_path):
    other = check_experiment({"environment": "diffuse_mix"})
    with pytest.raises(
        RunFolderError, match="another experiment: seed, training not as in its experiment.yaml"
    ) as caught:
        RunFolder.create(run.path, other, MACHINE)
    assert "remove" not in str(caught.value)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").touch()
    with pytest.raises(RunFolderError, match="holds files that are not a run's"):
        RunFolder.create(tmp_path / "letters", other, MACHINE)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_comment_or_a_default_less_is_the_same_experiment(run):
    experiment = run.experiment()
    path = run.path / "experiment.yaml"
    lines = [line for line in path.read_text().splitlines() if "holdout" not in line and "device" not in line]
    path.write_text("# mine\n" + "\n".join(lines))
    before = contents(run.path)
    RunFolder.create(run.path, experiment, MACHINE.model_copy(update={"torch": "another"}))
    assert contents(run.path) == before


@pytest.mark.parametrize("name", ["machine.json", "environment.json"])
def test_the_machine_is_that_of_the_beginning(run, name):
    """A second driver is refused later, by the lock."""
    first = MACHINE.model_copy(update={"torch": "2"})
    (run.path / "machine.json").unlink()
    (run.path / name).write_text(first.model_dump_json())
    with run.locked():
        again = RunFolder.create(run.path, run.experiment(), MACHINE)
        with pytest.raises(RunFolderError, match="a run is going on"), again.locked():
            pass
    assert run.machine() == first
    assert len(list(run.path.glob("*.json"))) == 1


def test_a_search_keeps_the_objectives_that_it_was_given(tmp_path):
    search = {"space": {"td3_bc": {"alpha": {"uniform": [0, 1]}}}}
    experiment = check_experiment({"environment": "diffuse_mix", "search": search})
    resolved = with_objectives(experiment, has_world=False)
    RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run = RunFolder.create(tmp_path / "run", resolved, MACHINE)
    assert run.experiment() == resolved
    with pytest.raises(RunFolderError, match="another experiment: evaluation, search not as in"):
        RunFolder.create(tmp_path / "run", with_objectives(experiment, has_world=True), MACHINE)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("max_timesteps: 1000", "max_timesteps: 2000"), "and 2 more cells do not belong .*: training changed"),
        (("- 2\n", ""), "seed2-.* does not belong .*: environment, algorithm or seed changed"),
    ],
)
def test_cells_of_an_experiment_that_was_changed_by_hand(run, change, what):
    """They are not counted beside the new ones, and nothing goes on before that is settled."""
    for cell in run.cells():
        cell.write_result(CellResult(status=FINISHED, updates=1000))
    path = run.path / "experiment.yaml"
    path.write_text(path.read_text().replace(*change))
    before = contents(run.path)
    changed = load_experiment(path)
    with pytest.raises(RunFolderError, match=what) as caught:
        RunFolder.create(run.path, changed, MACHINE)
    assert "remove" not in str(caught.value).lower()
    assert contents(run.path) == before
    run.add_cells(changed.cells())
    assert len(read_progress(run).cells) == len(changed.cells())
    assert len(cells_frame(run)) == len(changed.cells())


def test_a_seed_more_is_the_same_experiment(run):
    path = run.path / "experiment.yaml"
    path.write_text(path.read_text().replace("- 2\n", "- 2\n- 3\n"))
    again = RunFolder.create(run.path, load_experiment(path), MACHINE)
    assert [cell.path.name for cell in again.cells()] == [cell.path.name for cell in run.cells()]


@contextmanager
def reader():
    """A user who may read the files and not write them; root stops being root for a moment."""
    if os.geteuid() != 0:
        yield
        return
    try:
        os.seteuid(NOBODY)
    except OSError as error:
        pytest.skip(f"root cannot become another user here: {error}")
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_folder_that_may_only_be_read():
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        first, second, _ = run.cells()
        with run.locked():
            pass
        first.write_result(CellResult(status=FINISHED, updates=1000, report={"updates": 1000, "seconds": 20.0}))
        second.append_metrics({"updates": 100, "seconds": 2.0})
        assert (run.path / ".lock").exists()
        everything = [Path(folder), *Path(folder).rglob("*")]
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        try:
            with reader():
                state = read_progress(RunFolder.open(run.path))
                with pytest.raises(PermissionError):
                    (run.path / "new").touch()
        finally:
            for path in everything:
                path.chmod(0o755 if path.is_dir() else 0o644)
        assert state.summary() == ("1 finished, 1 pending, 1 unfinished. No process runs it.")


def test_a_run_of_another_account_is_seen_to_run():
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        Path(folder).chmod(0o755)
        run.write_running_cells([run.cells()[0].path.name])
        with run.locked(), reader():
            states = read_progress(RunFolder.open(run.path))
        assert states.running
        assert [cell.state for cell in states.cells] == [RUNNING, "pending", "pending"]


@pytest.mark.parametrize(
    "content",
    [
        '{}', '{"status": null}', '{"status": "done"}', '{"status": ["finished"]}',
        '{"updates": "many"}', '{"updates": true}', '{"updates": null}', '{"updates": 1.5}',
        '{"report": [1]}', '{"report": {"updates": "x"}}', '{"report": {"updates": null}}', '{"report": {"q": NaN}}',
        '{"test": {"last": 3}}', '{"test": {"last": {"return_mean": "high"}}}', '{"test": {"best": GOOD}}',
        '{"test": {"last": GOOD, "best": {}}}', '{"validation": 1}', '{"validation": {"last": 1.0}}',
        '{"validation": {"last": 1.0, "best": Infinity}}', '{"reason": {}}', '{"offline": {}}', '{"seconds": "1"}',
        '{"schema_version": "x"}', '{"schema_version": 0}', '{"schema_version": true}',
    ],
)  # fmt: skip
def test_a_result_of_another_shape_is_damaged(run, content):
    """Each is a whole result but for one mistake."""
    whole = '"status": "finished", "updates": 1' if content != "{}" else ""
    good = evaluation(1.0).model_dump_json()
    content = content.replace("GOOD", good).replace("{", "{" + whole + (", " if whole and len(content) > 2 else ""), 1)
    cell = run.cells()[0]
    (cell.path / "result.json").write_text(content)
    state = read_cell(cell)
    assert state.state == "unfinished"
    assert "result.json: cannot be read" in state.reason
    with pytest.raises(RunFolderError, match=r"result\.json: cannot be read"):
        cells_frame(run)
    cell.set_damaged_result_aside()
    assert cell.status == "pending"
    assert (cell.path / "result.json.damaged").read_text() == content


@pytest.mark.parametrize("content", [b"seconds\n3\n", b"\x00\xff\n" * 9, b"\r\r\n1,2\n", b"\n\n", b"updates\nabc\n"])
def test_metrics_of_another_shape_are_set_aside(run, content):
    cell = run.cells()[0]
    path = cell.path / "metrics.csv"
    path.write_bytes(content)
    assert cell.metrics() == []
    assert read_cell(cell).report == {}
    cell.keep_metrics_until(100)
    assert path.with_name("metrics.csv.damaged").read_bytes() == content
    cell.append_metrics({"updates": 0, "seconds": 1.0})
    assert len(cell.metrics()) == 1


def test_a_row_without_numbers_is_left_out(run):
    cell = run.cells()[0]
    (cell.path / "metrics.csv").write_text("updates,seconds\nabc,2\n100,x\n100,2\n")
    assert cell.metrics() == [{"updates": 100, "seconds": 2}]
    assert read_cell(cell).updates == 100


def test_a_metric_more_after_an_upgrade(run):
    cell = run.cells()[0]
    cell.append_metrics({"updates": 0, "loss": 1.5})
    cell.append_metrics({"updates": 1, "new": 7, "loss": 2.5})
    cell.append_metrics({"updates": 2})
    assert cell.metrics() == [
        {"updates": 0, "loss": 1.5},
        {"updates": 1, "loss": 2.5, "new": 7},
        {"updates": 2},
    ]
    assert (cell.path / "metrics.csv").read_text().splitlines() == ["updates,loss,new", "0,1.5,", "1,2.5,7", "2,,"]


@pytest.mark.parametrize(
    ("old", "new"),
    [("max_timesteps: 1000", "max_timesteps: many"), ("seed: 0", "seed: first"), ("settings: {}", "settings: 3")],
)
def test_a_description_of_another_shape_is_damaged(run, old, new):
    path = run.cells()[0].path / "cell.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "cell.yaml" in read_progress(run).cells[0].reason
    with pytest.raises(RunFolderError, match=r"cell\.yaml"):
        cells_frame(run)


def test_other_files_of_another_shape_name_themselves(run):
    def damaged(name, text, read):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(text)
        with pytest.raises(RunFolderError, match=name):
            read()

    for text in (
        "{}",
        '{"random": {"return_mean": 1, "users": 2}}',
        json.dumps({key: {} for key in REFERENCE_POLICIES}),
        json.dumps({key: evaluation(1.0).model_dump() for key in REFERENCE_POLICIES[1:]}),
        json.dumps({key: evaluation(1.0).model_dump() | {"users": None} for key in REFERENCE_POLICIES}),
    ):
        damaged("references/diffuse_mix.json", text, lambda: run.references("diffuse_mix"))
    for text in ('{"diffuse_mix": 3}', '{"diffuse_mix": {}}'):
        damaged("datasets.json", text, lambda: run.check_datasets({}))
    for text in ("{}", '{"candidates": {}}', '{"candidates": [3]}', '{"candidates": [{"cells": [1]}]}'):
        damaged("candidates.json", text, run.candidates)
    for text in (
        "algorithm: a\nsettings: {}\nparams: 3\ncells: []\n",
        "algorithm: a\nsettings: {}\nparams: {}\ncells: x\n",
    ):
        damaged("trials/0000.yaml", text, run.trials)
    run.set_damaged_search_records_aside()
    assert (run.candidates(), run.trials()) == (None, {})
