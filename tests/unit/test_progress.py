"""Reading a run: states, remaining time, what `status` and `logs` show, all without Ray."""

import sys

import pytest
from rich.console import Console

from gems_ray.cli.console import console
from gems_ray.cli.main import main
from gems_ray.cli.progress import CellsListener, cell_table, folded
from gems_ray.errors import RunFolderError
from gems_ray.evaluation.record import OfflineEvaluation
from gems_ray.experiments.candidates import trial_cells
from gems_ray.experiments.cell_folder import DIVERGED, ENDED, FAILED, FINISHED, PRUNED, RUNNING
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.progress import CellProgress, CellState, RunState, describe_seconds, read_cell, read_progress
from gems_ray.experiments.records import CandidateRecord, CellResult, TrialRecord
from gems_ray.experiments.run_folder import RunFolder
from tests.unit.conftest import MACHINE, make_run


def cell_state(state, updates=0, seconds=0.0, max_timesteps=1000):
    report = {"updates": float(updates), "seconds": seconds} if updates else {}
    return CellState("cell", state, max_timesteps, report)


def test_states(run):
    first, second, third = run.cells()
    assert [cell.status for cell in run.cells()] == ["pending"] * 3
    second.append_metrics({"updates": 100, "seconds": 2.0})
    third.append_metrics({"updates": 100, "seconds": 2.0})
    third.write_result(CellResult(status=FINISHED, updates=1000, report={"updates": 1000, "seconds": 20.0}))
    assert [cell.status for cell in run.cells()] == ["pending", "unfinished", "finished"]
    run.write_running_cells([first.path.name, third.path.name])
    with run.locked():
        states = read_progress(run).cells
    assert [(cell.state, cell.updates) for cell in states] == [(RUNNING, 0), ("unfinished", 100), (FINISHED, 1000)]
    assert read_progress(run).cells[0].state == "pending", "who wrote that it is being trained is gone"


@pytest.mark.parametrize("status", ENDED)
def test_ended_cells_have_nothing_left(run, status):
    cell = run.cells()[0]
    cell.append_metrics({"updates": 100, "seconds": 2.0})
    cell.write_result(CellResult(status=status, updates=100, reason="why"))
    state = read_cell(cell)
    assert (state.state, state.reason, state.updates, state.remaining_seconds) == (status, "why", 100, 0)


def test_remaining_time_of_a_cell_by_hand():
    assert cell_state(RUNNING, 250, 10.0).remaining_seconds == 30  # 25 updates a second, 750 to go
    assert cell_state("unfinished", 250, 10.0).remaining_seconds == 30
    assert cell_state(RUNNING).remaining_seconds is None
    assert cell_state("pending").remaining_seconds is None
    assert cell_state(FAILED, 250, 10.0).remaining_seconds == 0


def test_remaining_time_of_a_run_by_hand():
    two = [cell_state(RUNNING, 500, 10.0), cell_state(RUNNING, 250, 5.0)]  # 10 s and 15 s left, 0.02 s an update
    assert RunState(two, True, 2).remaining_seconds() == 15  # the longer one; (10 + 15) / 2 would be too few
    waiting = [cell_state("pending"), cell_state("pending")]  # 20 s each
    assert RunState(two + waiting, True, 4).remaining_seconds() == (10 + 15 + 20 + 20) / 2
    assert RunState(two + waiting, True, 6).remaining_seconds() == (10 + 15 + 20 + 20 + 2 * 20) / 2
    done = [cell_state(FINISHED, 1000, 40.0)]  # 0.04 s an update; 0.03 s are typical
    assert RunState(done + waiting[:1], True, 2).remaining_seconds() == pytest.approx(40)
    assert RunState([*done, *two[:1], *waiting[:1]], True, 3).remaining_seconds() == pytest.approx(10 + 30)
    assert RunState(waiting, True, 2).remaining_seconds() is None
    assert RunState([], True, 2).remaining_seconds() is None


@pytest.mark.parametrize(
    ("cells", "running", "planned", "text"),
    [
        ([], False, 0, "nothing begun."),
        ([], False, 3, "3 not begun. No process runs it."),
        ([cell_state("pending")], False, 1, "1 pending. No process runs it."),
        ([cell_state(FINISHED, 1000, 9.0)] * 2, False, 2, "2 finished."),
        ([cell_state(FINISHED), cell_state(DIVERGED), cell_state(FAILED), cell_state(PRUNED)], False, 4,
         "1 diverged, 1 failed, 1 finished, 1 pruned."),
        ([cell_state(FINISHED, 1000, 9.0)] * 2, False, 3,
         "2 finished, 1 not begun. No process runs it."),
        ([cell_state(RUNNING), cell_state("pending")], True, 2, "1 pending, 1 running. Running."),
        ([cell_state(RUNNING, 250, 10.0)], True, 1, "1 running. Running, about 30 s left."),
        ([cell_state(RUNNING, 250, 100.0)] * 2, True, 10,
         "2 running, 8 not begun. Running, about 32 min left."),  # (2 * 300 + 8 * 400) / 2 s
        ([cell_state(FINISHED)] * 3, True, 2, "3 finished."),
    ],
)  # fmt: skip
def test_summary(cells, running, planned, text):
    assert RunState(cells, running, planned).summary() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89.4, "89 s"), (90, "2 min"), (300, "5 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")],
)
def test_describe_seconds(seconds, text):
    assert describe_seconds(seconds) == text


def test_planned_cells(tmp_path):
    both = {"environment": ["diffuse_mix", "diffuse_divpen"], "algorithm": ["td3_bc", "bc"]}
    assert read_progress(make_run(tmp_path / "grid", **both)).planned == 2 * 2 * 3
    space = {"td3_bc": {"alpha": {"uniform": [0, 1]}}}
    search = {"space": space, "trials": 7, "seeds_per_trial": 2, "confirm": {"candidates": 3, "seeds": 4}}
    run = RunFolder.create(tmp_path / "search", check_experiment(both | {"seed": 0, "search": search}), MACHINE)
    assert read_progress(run).planned == 2 * (7 * 2 + (3 + 2) * 4)
    search["confirm"] = {"candidates": 0}
    run = RunFolder.create(tmp_path / "plain", check_experiment(both | {"seed": 0, "search": search}), MACHINE)
    assert read_progress(run).planned == 2 * 7 * 2
    assert read_progress(run).summary().startswith("28 not begun.")
    search |= {"sampler": "grid", "space": {"td3_bc": {"alpha": {"choice": [1.0, 2.5, 4.0]}}}}
    one = {"environment": "diffuse_mix", "seed": 0, "search": search}
    assert read_progress(RunFolder.create(tmp_path / "points", check_experiment(one), MACHINE)).planned == 3 * 2


def test_a_finished_search_needs_nothing_more(tmp_path):
    """The default among the best trials is one candidate less than could have been."""
    search = {
        "trials": 1,
        "space": {"td3_bc": {"alpha": {"uniform": [1, 3]}}},
        "confirm": {"candidates": 1, "seeds": 1},
    }
    experiment = check_experiment({"environment": "diffuse_mix", "search": search})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    trial, again = (experiment.with_settings("td3_bc", {}, [seed], test=seed > 0).cells() for seed in (0, 1))
    run.add_cells([*trial, *again])
    for cell in (*trial, *again):
        run.cell(cell.name).write_result(CellResult(status="finished", updates=1))
    run.write_trial(0, TrialRecord(algorithm="td3_bc", settings={}, params={}, cells=[trial[0].name]))
    assert "not begun" in read_progress(run).summary()
    cells = [again[0].name]
    run.write_candidates(
        [CandidateRecord(label="td3_bc default", trial=0, algorithm="td3_bc", settings={}, cells=cells)]
    )
    assert read_progress(run).summary() == "2 finished."


def test_damage_is_named(tmp_path):
    experiment = check_experiment({"environment": "diffuse_mix"})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    run.add_cells(experiment.cells())
    (folder,) = run.cells()
    (folder.path / "result.json").write_text("[]")
    assert "expected an object, found list" in read_progress(run).cells[0].reason
    folder.set_damaged_result_aside()
    (folder.path / "metrics.csv").write_text("updates,seconds\n100,1.0\n200,2.0,4\n")
    assert [row["updates"] for row in folder.metrics()] == [100]
    (run.path / "trials").mkdir()
    (run.path / "trials" / "0001 (copy).yaml").write_text("cells: []\n")
    assert run.trials() == {}
    (run.path / "trials" / "0001.yaml").write_text("cells: []\n")
    with pytest.raises(RunFolderError, match=r"0001\.yaml: .* is missing"):
        run.trials()
    (run.path / "experiment.yaml").write_text("environment: [diff")
    with pytest.raises(RunFolderError, match=r"experiment\.yaml"):
        read_progress(run)


def test_status_goes_on_past_a_damaged_run(tmp_path, monkeypatch, capsys):
    for name in ("a", "c"):
        make_run(tmp_path / name)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "experiment.yaml").write_text("environment: 3\n")
    monkeypatch.setattr(sys, "argv", ["run_tune.py", "status", "--storage", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert [line.split(":")[0] for line in lines[:3]] == [str(tmp_path / name) for name in "abc"]
    assert lines[3:] == ["`python run_tune.py resume RUN` goes on with a run that no process runs."]


@pytest.fixture
def shown(tmp_path, monkeypatch, capsys):
    """Runs a command here, in a terminal of 80 columns; returns its lines."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["run_tune.py", *map(str, arguments)])
        monkeypatch.setattr(console, "_width", 80)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out.splitlines()

    return run


def test_status_fits_80_columns_and_crops_no_number(tmp_path, shown):
    run = make_run(tmp_path / "a b", environment="diffuse_topdown", algorithm="bc_best")
    report = {"updates": 1000, "eval/return_mean": 123.4, "eval/best_return_mean": 234.5, "train/q_policy": 1345.6}
    run.cells()[0].write_result(CellResult(status=DIVERGED, updates=1000, report=report))
    lines = shown("status", run.path)
    assert lines[0].split() == ["cell", "state", "updates", "return", "best", "Q"]
    row = next(line for line in lines if DIVERGED in line)
    assert row.split()[1:] == [DIVERGED, "100%", "123.4", "234.5", "1345.6"]
    assert max(map(len, lines[:-1])) <= 80
    assert "".join(line.split()[0] for line in lines[1:3]) == run.cells()[0].path.name
    assert lines[-3:] == [
        "1 diverged, 2 pending. No process runs it.",
        "Continue with:",
        f"  python run_tune.py resume '{run.path}'",
    ]


def test_status_names_settings_and_where_the_return_goes(tmp_path, shown):
    run = make_run(tmp_path / "run", settings={"td3_bc": {"alpha": 0.5, "batch_size": 64}})
    first, second, third = run.cells()
    for value in (40.0, 50.0, 46.0):
        first.append_metrics({"updates": int(value), "eval/return_mean": value, "eval/return_se": 2.0})
        second.append_metrics({"updates": int(value), "eval/return_mean": value, "eval/return_se": 9.0})
    third.append_metrics({"updates": 1, "eval/return_mean": 7.0})
    lines = shown("status", run.path)
    assert lines[0].split() == ["cell", "settings", "state", "updates", "return"]
    rows = [line for line in lines if line.startswith("diffuse_mix")]
    numbers = [row.split("unfinished")[1].split() for row in rows]
    assert numbers == [["5%", "46.0", "↓"], ["5%", "46.0", "→"], ["0%", "7"]]
    assert all("alpha 0.5, batch_size 64" in row for row in rows)
    assert all(row.startswith(f"diffuse_mix-td3_bc-seed{seed} ") for seed, row in enumerate(rows))
    assert max(map(len, lines[:-1])) <= 80


def test_cells_that_have_ended_fold_away(tmp_path):
    def cell(number, state, value=None, title=""):
        report = {} if value is None else {"updates": 9, "eval/return_mean": value}
        return CellState(f"diffuse_mix-td3_bc-seed{number}-abc", state, 9, report, title=title)

    grid = [cell(number, FINISHED, 10.0 * number) for number in range(5)]
    grid += [cell(5, FAILED), cell(6, RUNNING, 3.0), *(cell(number, "pending") for number in range(7, 20))]
    shown = folded(grid)
    assert [one.title or one.name for one in shown] == [
        "diffuse_mix-td3_bc: 5 cells", *(f"diffuse_mix-td3_bc-seed{number}-abc" for number in (5, 6, 7, 8, 9)),
    ]  # fmt: skip
    assert shown[0].report["eval/return_mean"] == 20
    trials = [
        cell(number, PRUNED if number == 4 else FINISHED, 10.0 * number, f"trial {number}") for number in range(6)
    ]
    assert [one.title for one in folded(trials)] == [
        "diffuse_mix-td3_bc: 3 cells", "trial 5", "trial 4", "trial 3",
    ]  # fmt: skip
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(cell_table(shown))
    assert max(map(len, console.export_text().splitlines())) <= 80


def test_the_live_table_hears_where_the_return_goes(run):
    listener = CellsListener()
    listener.on_training(run)
    name = run.cells()[0].path.name
    for updates, value in ((0, 40.0), (50, 50.0), (60, 50.0)):
        evaluated = min(updates, 50)
        report = {"updates": updates, "evaluated_updates": evaluated, "eval/return_mean": value, "eval/return_se": 1.0}
        listener.on_cell(CellProgress(name, RUNNING, report))
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(listener._table())
    text = console.export_text()
    assert "50.0 ↑" in text  # a report without a new evaluation changes no trend
    assert text.count("pending") == 2 + 1  # the cells, and their number above


def test_status_of_a_search_names_settings_and_the_objective(tmp_path, shown):
    """On data without a world: no returns, so no column for them."""
    search = {"space": {"td3_bc": {"alpha": {"uniform": [0, 3]}}}, "objectives": "fqe", "trials": 2}
    evaluation = {"holdout": 0.2}
    experiment = check_experiment({"environment": "diffuse_mix", "search": search, "evaluation": evaluation})
    run = RunFolder.create(tmp_path / "run", experiment, MACHINE)
    offline = OfflineEvaluation(
        fqe_value=30.5, fqe_se=0.25, fqe_spread=1.5, behavior_value=33.0, cloning_error=0.25, episodes=4
    )
    for number, alpha in enumerate((0.4567, 2.0)):
        settings, cells = trial_cells(experiment, "td3_bc", {"alpha": alpha})
        names = [cell.name for cell in cells]
        run.add_cells(cells)
        run.write_trial(
            number, TrialRecord(algorithm="td3_bc", settings=settings, params={"alpha": alpha}, cells=names)
        )
        report = {"updates": 1_000_000, "train/critic_loss": 0.5 + number}
        result = CellResult(status=FINISHED, updates=1_000_000, report=report, offline=offline)
        run.cell(names[0]).write_result(result)
    digits = [name.rpartition("-")[2][:6] for name in (record.cells[0] for record in run.trials().values())]
    lines = shown("status", run.path)
    assert lines[0].split() == ["trial", "state", "updates", "loss", "fqe"]
    assert lines[1].split() == ["trial", "0:", "alpha", "0.457", f"({digits[0]})", FINISHED, "100%", "0.5", "29.0"]
    assert lines[2].split() == ["trial", "1:", "alpha", "2", f"({digits[1]})", FINISHED, "100%", "1.5", "29.0"]


def test_a_log_without_a_last_newline_is_shown(run, shown):
    assert shown("logs", run.path, "seed0")[0].endswith("has no log yet (pending).")
    run.cells()[0].log.write_text("one line")
    assert shown("logs", run.path, "seed0") == ["one line"]
