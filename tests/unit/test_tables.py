"""The result table, from a run folder that is written by hand."""

import json
import math

import pandas as pd
import pytest
from rich.console import Console

from gems_ray import metrics
from gems_ray.experiments.cell_folder import DIVERGED, FAILED, FINISHED
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellResult, DatasetFacts, FinalEvaluations, References
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.cells import cells_frame
from gems_ray.results.tables import export, notes, result_frame, to_markdown, to_rich
from tests.unit.conftest import MACHINE, evaluation

REFERENCES = {"random": 40.0, "oracle": 90.0, "behavior": 240.0}


def result(last, best):
    test = FinalEvaluations(last=evaluation(last), best=evaluation(best))
    return CellResult(status=FINISHED, updates=3000, seconds=9.5, best_updates=250, test=test)


@pytest.fixture
def run(tmp_path):
    experiment = check_experiment({"environment": ["diffuse_topdown", "diffuse_divpen"], "seed": [0, 1, 2]})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    for environment in experiment.environment:
        run.write_references(environment, References(**{name: evaluation(v) for name, v in REFERENCES.items()}))
    for cell in experiment.cells():
        if cell.environment == "diffuse_topdown":
            run.cell(cell.name).write_result(result([100.0, 140.0, 180.0][cell.seed], 240.0))
        elif cell.seed == 0:
            run.cell(cell.name).write_result(result(60.0, 80.0))
        elif cell.seed == 1:
            run.cell(cell.name).write_result(CellResult(status=FAILED, updates=7, reason="a loss is not finite"))
    return run


def test_mean_deviation_and_score_by_hand(run):
    table = result_frame(run).set_index(["environment", "algorithm"])
    row = table.loc[("diffuse_topdown", "td3_bc")]
    assert (row.last_mean, row.last_std, row.seeds, row.users) == (140, 40, 3, 100)
    assert row.last_score == pytest.approx(100 * (140 - 40) / (240 - 40))
    assert (row.best_mean, row.best_std, row.best_score) == (240, 0, 100)
    assert table.loc[("diffuse_divpen", "random")].last_score == 0
    assert table.loc[("diffuse_divpen", "behavior")].last_score == 100
    single = table.loc[("diffuse_divpen", "td3_bc")]
    assert single.seeds == 1
    assert math.isnan(single.last_std)


def test_the_logged_episodes_have_a_row(run):
    facts = DatasetFacts(file="x.npz", fingerprint="abc", transitions=400, world_fingerprint="w")
    run.check_datasets({"diffuse_topdown": facts.model_copy(update={"logged_return": 90.0}), "diffuse_divpen": facts})
    table = result_frame(run).set_index(["environment", "algorithm"])
    row = table.loc[("diffuse_topdown", "logged")]
    assert (row.last_mean, row.best_mean, row.last_score, row.seeds) == (90, 90, 25, 0)
    assert ("diffuse_divpen", "logged") not in table.index  # recorded before the returns were
    markdown = to_markdown(result_frame(run))
    assert "| diffuse_topdown | logged | 90.0 | 25 | 90.0 | 25 |  |" in markdown
    assert "logged: mean of the episodes in the dataset." in markdown
    (run.path / "datasets.json").write_text("{")
    assert "logged" not in set(result_frame(run)["algorithm"])


def test_failed_and_pending_cells_stand_in_the_list_and_not_in_the_mean(run):
    cells = cells_frame(run)
    assert len(cells) == 6
    here = cells[cells["environment"] == "diffuse_divpen"].set_index("seed")
    assert here.loc[0, "status"] == "finished"
    assert (here.loc[1, "status"], here.loc[1, "reason"]) == ("failed", "a loss is not finite")
    assert here.loc[2, "status"] == "pending"
    assert here["last_return"].isna().tolist() == [False, True, True]


def test_exports_agree(run, tmp_path):
    paths = export(run, tmp_path / "out")
    assert [path.name for path in paths] == ["table.csv", "table.md", "cells.csv"]
    table = pd.read_csv(paths[0])
    assert len(table) == 8
    assert table["last_mean"].tolist() == result_frame(run)["last_mean"].round(3).tolist()
    assert table["q_policy"].notna().sum() == 0  # the cells of this fixture have no reports
    markdown = paths[1].read_text()
    assert "| diffuse_topdown | td3_bc | 140.0 ± 40.0 | 50 | 240.0 ± 0.0 | 100 | 3 |" in markdown
    assert markdown.startswith(to_markdown(result_frame(run)) + "\n- Cells: 6 (1 failed, 4 finished, 1 pending).")
    assert len(pd.read_csv(paths[2])) == 6


def test_diverged_cells_count_and_are_named(run):
    cell = next(cell for cell in run.cells() if "topdown" in cell.path.name and "seed2" in cell.path.name)
    cell.write_result(result(180.0, 240.0).model_copy(update={"status": DIVERGED}))
    cells = cells_frame(run)
    assert cells["status"].tolist().count("diverged") == 1
    table = result_frame(run, cells)
    row = table.set_index(["environment", "algorithm"]).loc[("diffuse_topdown", "td3_bc")]
    assert (row.last_mean, row.seeds, row.diverged) == (140, 3, 1)
    assert notes(table)[-1] == "diverged: 1 of 3 td3_bc in diffuse_topdown."


def test_diagnostics_are_those_of_the_last_report(run):
    for cell in run.cells():
        if "topdown" in cell.path.name:
            seed = int(cell.path.name.split("seed")[1][0])
            cell.append_metrics(
                {metrics.STEP: 0, metrics.Q_POLICY: 1.0, metrics.Q_BOUND: 50.0, metrics.TD_ERROR: math.nan}
            )
            cell.append_metrics(
                {metrics.STEP: 9, metrics.Q_POLICY: 10.0 * seed, metrics.Q_BOUND: 50.0, metrics.TD_ERROR: 2}
            )
    cells = cells_frame(run)
    assert cells["q_policy"].dropna().tolist() == [0, 10, 20]
    table = result_frame(run, cells)
    assert table.set_index(["environment", "algorithm"]).loc[("diffuse_topdown", "td3_bc")].q_policy == 10
    assert "| diffuse_topdown | td3_bc | - | 10.0 | - | 50.0 | - | - | 120 | 25% | 10% |" in to_markdown(table)


def test_fits_a_terminal_of_80_columns(run):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    table = result_frame(run)
    console.print(to_rich(table))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("140.0 ± 40.0" in line and "240.0 ± 0.0" in line for line in lines)
    assert all(len(note) <= 80 for note in notes(table))


def test_a_long_name_of_an_algorithm_is_folded(run):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    table = result_frame(run).replace("td3_bc", "decision_transformer")
    console.print(to_rich(table))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert "140.0 ± 40.0" in text and "240.0 ± 0.0" in text


def test_no_score_where_the_behaviour_is_random(run):
    run.write_references("diffuse_topdown", References(**{name: evaluation(40.0) for name in REFERENCES}))
    table = result_frame(run).set_index(["environment", "algorithm"])
    assert math.isnan(table.loc[("diffuse_topdown", "td3_bc")].last_score)
    assert "| diffuse_topdown | td3_bc | 140.0 ± 40.0 | - |" in to_markdown(result_frame(run))


def test_without_a_world_there_is_no_score(tmp_path):
    experiment = check_experiment({"environment": ["diffuse_mix"]})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    (cell,) = run.cells()
    cell.write_result(CellResult(status=FINISHED, updates=10, seconds=1.0, best_updates=10))
    table = result_frame(run)
    assert table["algorithm"].tolist() == ["td3_bc"]
    assert table["last_mean"].isna().all()
    assert "does not say in which world" in notes(table)[0]
    assert "| - | - |" in to_markdown(table)


def test_torn_result_names_the_file(run):
    cell = run.cells()[0]
    (cell.path / "result.json").write_text(json.dumps({"status": "finished"})[:-3])
    from gems_ray.errors import RunFolderError

    with pytest.raises(RunFolderError, match=r"result\.json"):
        cells_frame(run)


def test_the_engine_of_the_updates_is_told(run, tmp_path):
    for cell, engine in zip(run.cells()[:3], ("graph", "compiled_graph", None), strict=True):
        report = {"train/cloning_error": 0.5}
        cell.write_result(CellResult(status=FINISHED, updates=1000, engine=engine, report=report))
    frame = cells_frame(run)
    assert sorted(frame["engine"].dropna()) == ["compiled_graph", "graph"]
    for path in export(run, tmp_path):
        assert "graph" in path.read_text()
    assert "Engine of the updates: compiled_graph, graph." in (tmp_path / "table.md").read_text()
