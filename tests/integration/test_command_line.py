"""The commands without Ray: what they write, and what they say when something is wrong."""

import csv
import json
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from gems_ray.cli.main import main
from gems_ray.world.bundle import load_world
from tests.conftest import make_world


@pytest.fixture
def files(tmp_path, world_folder, dataset_file):
    """Names that the cases below use, as they stand in the user's folder."""
    arrays = {
        "observations": np.zeros((200, 20), dtype=np.float32),
        "actions": np.random.default_rng(0).normal(size=(200, 32)).astype(np.float32),
        "rewards": np.ones(200, dtype=np.float32),
        "next_observations": np.zeros((200, 20), dtype=np.float32),
        "terminals": np.arange(200) % 100 == 99,
    }
    np.savez(tmp_path / "foreign.npz", **arrays)
    np.savez(tmp_path / "nan.npz", **(arrays | {"rewards": np.full(200, np.nan, dtype=np.float32)}))
    np.savez(tmp_path / "shape.npz", **(arrays | {"actions": np.zeros((200, 31), dtype=np.float32)}))
    np.savez(tmp_path / "object.npz", **(arrays | {"rewards": np.array([object()] * 200)}), allow_pickle=True)
    (tmp_path / "cut.npz").write_bytes(dataset_file.read_bytes()[:5000])
    (tmp_path / "mine.npz").write_bytes(dataset_file.read_bytes())
    make_world(seed=3).save(tmp_path / "other_world")
    (tmp_path / "typo.yaml").write_text("environment: diffuse_mix\nmax_timestep: 3\n")
    (tmp_path / "cuda.yaml").write_text("environment: diffuse_mix\ntraining: {device: cuda}\n")
    (tmp_path / "plain.yaml").write_text("environment: diffuse_mix\n")
    (tmp_path / "large.yaml").write_text("environment: diffuse_mix\nresources: {cpu: 4096}\n")
    (tmp_path / "missing_data.yaml").write_text("environment: diffuse_mix\ndataset: {file: none.npz}\n")
    data = f"environment: diffuse_mix\nworlds: {{diffuse_mix: {world_folder}}}\ndataset: {{file: mine.npz}}\n"
    (tmp_path / "search.yaml").write_text(data + "search: {space: {td3_bc: {alpha: {uniform: [0, 1]}}}}\n")
    (tmp_path / "space.yaml").write_text(data + "search: {space: {td3_bc: {alhpa: {uniform: [0, 1]}}}}\n")
    (tmp_path / "topdown.yaml").write_text("environment: diffuse_mix\nworlds: {diffuse_mix: diffuse_topdown}\n")
    (tmp_path / "no_world.yaml").write_text("environment: diffuse_mix\nworlds: {diffuse_mix: worlds/none}\n")
    (tmp_path / "in_file.yaml").write_text("environment: diffuse_mix\ndataset: {folder: plain.yaml}\n")
    (tmp_path / "nul.yaml").write_text("environment: \0\n")
    (tmp_path / "batch.yaml").write_text("environment: diffuse_mix\nsettings: {td3_bc: {batch_size: 1.0e+14}}\n")
    tracking = {"folder": "mlflow: ./mlruns", "password": "mlflow: 'http://me:secret@host'", "project": "wandb: a/b"}
    for name, line in tracking.items():
        (tmp_path / f"tracking_{name}.yaml").write_text(f"environment: diffuse_mix\ntracking:\n  {line}\n")
    (tmp_path / "tracked.yaml").write_text("environment: diffuse_mix\ntracking: {mlflow: 'sqlite:///mlflow.db'}\n")
    (tmp_path / "unknown.yaml").write_text("environment:\n  - diffuse_mxi\n")
    return {"world": str(world_folder)}


WITHOUT_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
BAD_INPUT = [
    (["train", "--env_name", "diffuse_mix", "--dataset", "none.npz"], "none.npz: no such dataset"),
    (["train", "--env_name", "diffuse_mix", "--dataset", "cut.npz"], "cut.npz: "),
    (["train", "--env_name", "diffuse_mix", "--dataset", "nan.npz"], "nan.npz: `rewards`: 200 values are NaN"),
    (["train", "--env_name", "diffuse_mix", "--dataset", "shape.npz"], "expected shape (200, 32), found (200, 31)"),
    (["train", "--env_name", "diffuse_mix", "--dataset", "object.npz"], "object array"),
    (["train", "--env_name", "diffuse_mix", "--dataset", "mine.npz", "--world", "other_world"], "collected in world"),
    (["train", "--env_name", "diffuse_mx"], "Did you mean `diffuse_mix`?"),
    (["train", "--env_name", "diffuse_mix", "--algorithm", "td3"], "Did you mean `td3_bc`?"),
    (["train", "--env_name", "diffuse_mix", "--alpha", "-1"], "alpha"),
    (["train", "--env_name", "diffuse_mix", "--device", "tpu"], "`--device`: input should be"),
    (["train", "--env_name", "diffuse_mix", "--compile", "some"], "`--compile`: input should be 'auto', 'on'"),
    (["train", "--env_name", "diffuse_mix", "--set", "tau"], "--set tau: expected NAME=VALUE"),
    (["train", "--env_name", "diffuse_mix", "--algorithm", "iql", "--set", "betta=3"], "Did you mean `beta`?"),
    (
        ["train", "--env_name", "diffuse_mix", "--set", "alfa=1"],
        "error: `--set alfa` is not a field of `td3_bc`. Did you mean `alpha`? Fields: ",
    ),
    (["train", "--env_name", "diffuse_mix", "--set", "reward_scale=big"], "expected none, std or a number above 0"),
    pytest.param(["train", "--env_name", "diffuse_mix", "--device", "cuda"], "no CUDA device", marks=WITHOUT_CUDA),
    pytest.param(["grid", "cuda.yaml"], "no CUDA device", marks=WITHOUT_CUDA),
    (["collect", "--environment", "diffuse_mx"], "Did you mean `diffuse_mix`?"),
    (["collect", "--environment", "diffuse_mix", "--quality", "best"], "Known: random, medium, expert, mixed"),
    (["collect", "--environment", "diffuse_mix", "--world", "nowhere"], "nowhere"),
    (["grid", "none.yaml"], "none.yaml: no such file"),
    (["grid", "typo.yaml"], "typo.yaml:2: `max_timestep` is not a field"),
    (["grid", "unknown.yaml"], "unknown.yaml:2: environment `diffuse_mxi` does not exist"),
    (["export", "nothing"], "nothing: not a run folder"),
    (["status", "nothing"], "nothing: not a run folder"),
    (["logs", "nothing", "cell"], "nothing: not a run folder"),
    (["resume", "nothing"], "nothing: not a run folder"),
    (["search", "plain.yaml"], "plain.yaml: has no `search`"),
    (["grid", "search.yaml"], "search.yaml: describes a search"),
    (["plan", "unknown.yaml"], "unknown.yaml:2: environment `diffuse_mxi` does not exist"),
    (["plan", "missing_data.yaml"], "none.npz: no such dataset"),
    (["grid", "missing_data.yaml", "--dry-run"], "none.npz: no such dataset"),
    (["plan", "large.yaml"], "a cell asks for 4096 CPUs"),
    (["search", "space.yaml"], "space.yaml:4: `search.space.td3_bc.alhpa` is not a field"),
    (["search", "search.yaml", "--study-storage", "nonsense"], "expected a database URL"),
    (["search", "search.yaml", "--study-storage", "postgresql://u:secret@127.0.0.1:1/x"], "cannot be opened"),
    (["plan", "topdown.yaml"], "worlds.diffuse_mix: the world `diffuse_topdown` simulates diffuse_topdown, expected"),
    (["plan", "no_world.yaml"], "worlds.diffuse_mix: no world `worlds/none`"),
    (["plan", "in_file.yaml"], "dataset.folder: `plain.yaml/diffuse_mix_expert.npz` cannot be written"),
    (["plan", "nul.yaml"], "nul.yaml:1: not valid YAML: control character #x00"),
    (["plan", "tracking_folder.yaml"], "tracking_folder.yaml:3: `tracking.mlflow`: expected a URI such as sqlite:///"),
    (["grid", "tracking_password.yaml"], "yaml:3: `tracking.mlflow`: expected a URI without user and password. MLFLOW"),
    (["grid", "tracking_project.yaml"], "`tracking.wandb`: expected the name of a project: letters, digits, `-`, `_`"),
    (["plan", "."], ".: expected a YAML file, found a folder"),
    (["plan", "batch.yaml"], "batch_size"),
    pytest.param(["plan", "cuda.yaml"], "a cell has no GPU: set resources.gpu", id="plan cuda"),
    (["plan", "plain.yaml", "--name", "."], "--name: expected the name of a folder in runs, found `.`"),
    (["plan", "plain.yaml", "--name", "../x"], "--name: expected the name of a folder in runs, found `../x`"),
    (["plan", "plain.yaml", "--name", "x" * 300], "--name: expected at most 255 bytes, found 300"),
    (
        ["plan", "plain.yaml", "--storage", ".", "--name", "mine.npz"],
        "mine.npz: expected a folder, but `mine.npz` is a",
    ),
    (["plan", "plain.yaml", "--nam"], "run_tune.py plan: No such option: --nam"),
    (["train"], "run_tune.py train: Missing option '--env_name'"),
    (["train", "--env_name", "diffuse_mix", "--seed", "one"], "Invalid value for '--seed'"),
    (["train", "--env_name", "diffuse_mix", "--world", "diffuse_topdown"], "--world: the world `diffuse_topdown` sim"),
    (["train", "--env_name", "diffuse_mix", "--dataset", "foreign.npz", "--world", "nope"], "Leave out --world"),
    (
        ["train", "--env_name", "diffuse_mix", "--alpha", "1", "--set", "alpha=2"],
        "alpha is given a second time, by --al",
    ),
    (
        ["train", "--env_name", "diffuse_mix", "--algorithm", "iql", "--expectile", "2"],
        "`--expectile`: input should be less than 1, found `2`",
    ),
    (["train", "--env_name", "diffuse_mix", "--hidden-sizes", "[64, -1]"], "`--hidden_sizes.1`: input should be gr"),
    (
        ["train", "--env_name", "diffuse_mix", "--policy-freq", "two"],
        "`--policy_freq`: expected an integer, found `two`",
    ),
    (["train", "--env_name", "diffuse_mix", "--algorithm", "bc", "--alpha", "1"], "No such option: --alpha"),
    (["train", "--env_name", "diffuse_mix", "--set", "tau=1", "--set", "tau=1"], "given a second time, by --set"),
    (["train", "--env_name", "diffuse_mix", "--normalize", "--set", "normalize_states=false"], "by --normalize"),
    (["train", "--env_name", "diffuse_mix", "--set", "tau=\x01"], r"--set tau=\x01: not valid YAML: control character"),
    (
        ["train", "--env_name", "diffuse_mix", "--set", "hidden_sizes=[-1]"],
        "`--set hidden_sizes.0`: input should be gr",
    ),
    (["collect", "--environment", "bogus", "--world", "diffuse_mix"], "environment `bogus` does not exist"),
    (["collect", "--environment", "diffuse_mix", "--world", "diffuse_topdown"], "expected one of diffuse_mix"),
    (
        ["collect", "--environment", "diffuse_mix", "--output", "other_world"],
        "--output: expected a file to write, found",
    ),
    (["collect", "--environment", "diffuse_mix", "--output", ""], "--output: expected a file to write, found"),
    (["collect", "--environment", "diffuse_mix", "--episodes", "100000000000"], "Invalid value for '--episodes'"),
    (["world", "train", "--environment", "diffuse_mix", "--output", "mine.npz"], "mine.npz: expected a folder, but"),
    (["world", "train", "--environment", "diffuse_mix", "--lambda-kl", "inf"], "--lambda-kl: expected a finite number"),
    (
        ["world", "train", "--environment", "diffuse_mix", "--seeds", "1", "2", "1"],
        "--seeds: expected different numbers",
    ),
    (
        ["world", "train", "--environment", "diffuse_mix", "--seed", "1", "--seeds", "1"],
        "--seed 1: --seeds names all seeds",
    ),
    (["world", "without-duplicates", "focused_mix", "--output", "distinct"], "No world for `focused_mix` is shipped"),
    (["dataset", "export", "none.npz", "--minari", "mine-v0"], "none.npz: no such dataset"),
    (["dataset", "import", "--minari", "mine", "--output", "mine.npz"], "`mine`: is no name of Minari"),
    (["world", "train", "--environment", "diffuse_mx"], "Did you mean `diffuse_mix`?"),
    (["world", "train", "--environment", "diffuse_mix", "--items", "file:none.npy"], "none.npy: no such item file"),
]


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """Runs the command line here: forty processes that import torch would take two minutes."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run_tune.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, ended.value.code, shown.out, shown.err)

    return run


def test_a_real_process_says_the_same(command):
    done = command("grid", "none.yaml")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: none.yaml: no such file. Check the path; examples are in tune_configs/."
    ]


EXTREME = [
    ("flow.yaml", f"seed: {'[' * 2_000}{']' * 2_000}\n", "flow.yaml:1: not valid YAML: nested too deeply."),
    ("mappings.yaml", f"seed: {'{a: ' * 2_000}{'}' * 2_000}\n", "mappings.yaml:1: not valid YAML: nested too deeply."),
    ("block.yaml", "".join(f"{' ' * level}a:\n" for level in range(600)), "block.yaml:50: not valid YAML: nested too"),
    (
        "seeds.yaml",
        f"environment: diffuse_mix\nseed: {list(range(500_000))}\n",
        "seeds.yaml: expected at most 250,000 bytes, found 3,888,922. Shorten it, or make several files of it.",
    ),
    (
        "cells.yaml",
        f"environment: [a, b, c, d, e]\nalgorithm: [f, g, h, i, j]\nseed: {list(range(5_000))}\n",
        "cells.yaml:3: `seed`: environments x algorithms x seeds, 5 x 5 x 5,000, are 125,000 cells, expected at most",
    ),
    (
        "aliases.yaml",
        "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)),
        "aliases.yaml:14: too many values once its aliases are written out, expected at most 50,000.",
    ),
    (
        "itself.yaml",
        "&x\na: *x\n",
        "itself.yaml:2: not valid YAML: nested too deeply: a value holds itself by its alias.",
    ),
    ("/dev/zero", "", "/dev/zero: expected at most 250,000 bytes, found more."),
    ("/dev/urandom", "", "/dev/urandom: expected at most 250,000 bytes, found more."),
]


@pytest.mark.parametrize(("name", "text", "message"), EXTREME, ids=lambda value: str(value)[:20])
def test_extreme_files_are_refused_in_a_short_time(command, tmp_path, name, text, message):
    if text:
        (tmp_path / name).write_text(text)
    done = command("grid", name, timeout=20)  # a third of it is usual where the machine has other work
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=lambda value: str(value)[:60])
def test_bad_input_is_one_clear_line(in_process, files, tmp_path, arguments, message):
    before = sorted(tmp_path.rglob("*"))
    done = in_process(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "Training a world" not in done.stdout
    written = set(tmp_path.rglob("*")) - set(before)
    assert not [path for path in written if path.is_file()], "something was half-written"
    assert "secret" not in done.stdout + done.stderr


@pytest.mark.parametrize("words", [["plan"], ["grid"], ["grid", "--dry-run"]], ids=" ".join)
def test_the_package_of_a_tracker_is_missing(in_process, files, tmp_path, monkeypatch, words):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    done = in_process(*words, "tracked.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.splitlines() == [
        "error: tracking.mlflow: the package mlflow is not installed. Install it with "
        "`pip install 'gems_ray[mlflow]'`, or leave `tracking.mlflow` out."
    ]
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "offline_datasets").exists()


def test_a_lack_of_memory_is_one_line(in_process, files, monkeypatch):
    def fail(*arguments):
        raise MemoryError

    monkeypatch.setattr("gems_ray.cli.plan.print_plan", fail)
    done = in_process("plan", "plain.yaml")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "memory: what was asked for does not fit. Lower batch_size" in done.stderr


def test_plan_lists_every_cell_and_runs_nothing(command, tmp_path):
    text = "environment: diffuse_mix\nseed: [0, 1]\ntraining: {max_timesteps: 1000}\ndataset: {episodes: 30}\n"
    (tmp_path / "some.yaml").write_text(text)
    for arguments in (["plan", "some.yaml"], ["grid", "some.yaml", "--dry-run"]):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
        shown = " ".join(done.stdout.split())
        assert "30 episodes will be collected into offline_datasets/diffuse_mix_expert.npz" in shown
        assert shown.count("diffuse_mix-td3_bc-seed") == 2
        for part in ("cells: 2, of which 0 have ended", "time: about", "memory: about", "disk: about"):
            assert part in shown
        assert shown.endswith("Nothing was run.")
    assert [path.name for path in tmp_path.iterdir()] == ["some.yaml"]


def test_collect_train_and_export(command, files, tmp_path):
    world = ["--world", files["world"]]
    collected = command("collect", "--environment", "diffuse_mix", "--quality", "random", "--episodes", 20, *world)
    assert collected.returncode == 0, collected.stderr
    assert (tmp_path / "offline_datasets" / "diffuse_mix_random.npz").is_file()
    flags = ["--env_name", "diffuse_mix", "--seed", 1, "--max_timesteps", 120, "--batch_size", 32, "--alpha", 1.0]
    flags += ["--normalize", "--device", "cpu", "--discount", 0.9, "--tau", 0.01, "--policy-noise", 0.1]
    flags += ["--policy_freq", 3, "--learning-rate", 1e-3, "--quality", "random", "--name", "mine", *world]
    data = ["--dataset", "offline_datasets/diffuse_mix_random.npz"]
    trained = command("train", *flags, *data)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "td3_bc" in trained.stdout
    assert max(map(len, trained.stdout.splitlines())) <= 100

    exported = command("export", "runs/mine", "--output", "tables")
    assert exported.returncode == 0, exported.stderr
    cells = pd.read_csv(tmp_path / "tables" / "cells.csv")
    assert cells.loc[0, ["environment", "algorithm", "seed", "status", "updates"]].tolist() == [
        "diffuse_mix", "td3_bc", 1, "finished", 120,
    ]  # fmt: skip
    assert np.isfinite(cells.loc[0, ["last_return", "best_return"]].astype(float)).all()

    again = command("train", *flags, *data)
    assert again.returncode == 0
    assert "Continuing" not in again.stdout, "a finished experiment is not repeated"


def test_foreign_file_trains_and_says_what_is_missing(command, files):
    done = command("train", "--env_name", "diffuse_mix", "--dataset", "foreign.npz", "--max_timesteps", 60)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "no metadata" in text
    assert "need to know the world" in text
    assert "No returns" in text


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_training_saves_and_its_command_continues(command, files, tmp_path, number):
    flags = ["--env_name", "diffuse_mix", "--dataset", "mine.npz", "--world", files["world"], "--name", "cut"]
    flags += ["--max_timesteps", 1500, "--evaluation_interval", 500, "--batch_size", 64]
    process = command("train", *flags, start=True)
    for line in process.stdout:
        if "100/1,500" in line:
            break
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(60) == 128 + number
    assert "Continue with:" in rest
    (facts,) = [json.loads(path.read_text()) for path in tmp_path.glob("runs/cut/cells/*/result.json")] or [None]
    assert facts is None
    done = command("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "Continuing after" in done.stdout
    whole = command("train", *(flag if flag != "cut" else "whole" for flag in flags))
    assert whole.returncode == 0
    results = [
        json.loads(next(tmp_path.glob(f"runs/{name}/cells/*/result.json")).read_text()) for name in ("cut", "whole")
    ]
    assert results[0]["test"] == results[1]["test"]


def test_help_says_which_way_alpha_points(command):
    text = " ".join(command("train", "--help").stdout.split())
    assert "larger means more reinforcement learning, 0 is pure behaviour cloning" in text


@pytest.mark.slow
def test_world_training_continues_where_it_was_cut_off(command, tmp_path):
    flags = ["world", "train", "--environment", "diffuse_topdown", "--output", "made", "--sessions", 40]
    flags += ["--epochs", 1, "--episodes", 2000]
    process = command(*flags, start=True)
    for line in process.stdout:
        if "agent episode   1000" in line:
            break
    process.kill()
    process.wait()
    assert not (tmp_path / "made" / "manifest.yaml").exists()
    done = command(*flags)
    assert done.returncode == 0, done.stderr
    assert "ranker epoch" not in done.stdout
    assert "agent episode   1000" not in done.stdout
    assert "agent episode   2000" in done.stdout
    assert (tmp_path / "made" / "manifest.yaml").is_file()
    assert not (tmp_path / "made" / "training").exists()
    log = (tmp_path / "made" / "agent_log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["episodes", "1000", "2000"]
    again = command(*flags)
    assert again.returncode == 2
    assert "finished world" in again.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_worlds_of_several_seeds_and_the_best_of_them(command, tmp_path):
    """Two worlds side by side, so small that the agents only begin; a third one later, and the first two stay."""
    flags = ["world", "train", "--environment", "diffuse_mix", "--output", "made", "--sessions", 20]
    flags += ["--epochs", 1, "--episodes", 100]
    done = command(*flags, "--seeds", 0, 1, timeout=600)
    assert done.returncode == 0, done.stderr
    first = [load_world(tmp_path / "made" / f"seed{seed}") for seed in (0, 1)]
    assert first[0].fingerprint != first[1].fingerprint
    best = max(first, key=lambda world: world.facts["validation"]["return_mean"])
    assert load_world(tmp_path / "made").fingerprint == best.fingerprint
    done = command(*flags, "--seeds", 0, 1, 2, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "seed 0" not in done.stdout, "it was not trained again"
    with (tmp_path / "made" / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "2"]
    assert [row["fingerprint"] for row in rows[:2]] == [world.fingerprint for world in first]
    (kept,) = (row for row in rows if row["kept"] == "True")
    assert float(kept["validation_mean"]) == max(float(row["validation_mean"]) for row in rows)
    made = load_world(tmp_path / "made")
    assert made.fingerprint == kept["fingerprint"]
    assert len(made.facts["seeds"]) == 3
    other = command(*flags[:-2], "--episodes", 150, "--seeds", 0)
    assert other.returncode == 2
    assert "holds a world with other settings" in other.stderr
    alone = command(*flags)
    assert alone.returncode == 2
    assert "a finished world is here already" in alone.stderr
