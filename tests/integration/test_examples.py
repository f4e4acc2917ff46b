"""Every script in examples/ runs as its first lines say, at a tiny size."""

import os
import re
import subprocess
import sys

import pytest

import gems_ray

TINY = {
    "train_and_evaluate.py": ["--episodes", 20, "--updates", 50, "--users", 20],
    "own_policy.py": ["--users", 50],
    "own_agent.py": ["--steps", 30_000, "--episodes", 20, "--users", 200],
    "own_algorithm.py": ["--episodes", 20, "--updates", 50],
    "read_results.py": ["runs/tiny"],
    "tune_asha.py": ["--episodes", 20, "--updates", 200, "--trials", 4],
    "tune_pbt.py": ["--episodes", 20, "--updates", 600, "--trials", 4],
}


@pytest.fixture
def example(tmp_path, request):
    """Runs an example in an empty folder; returns what it printed."""

    def run(name):
        root = request.config.rootpath
        line = [sys.executable, str(root / "examples" / name), *map(str, TINY[name])]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def returns(text):
    """All numbers of clicks per episode in an output."""
    return [float(number) for number in re.findall(r"([\d.]+)(?: ± [\d.]+)? clicks per episode", text)]


def test_every_example_is_run(request):
    assert {path.name for path in (request.config.rootpath / "examples").glob("*.py")} == set(TINY)


def test_train_and_evaluate(example, tmp_path):
    before, after, evaluated = returns(example("train_and_evaluate.py"))
    assert after > before + 30  # fifty updates are enough to follow the expert a little
    assert evaluated > before + 30
    assert (tmp_path / "my_policy" / "policy.yaml").is_file()
    assert gems_ray.load_dataset(tmp_path / "mine.npz").metadata.environment == "diffuse_mix"


def test_own_policy(example):
    random, *keeping = returns(example("own_policy.py"))
    assert len(keeping) == 4
    assert keeping[0] > random  # it has seen the clicks, and remembered what was clicked


@pytest.mark.slow
def test_own_agent(example, tmp_path):
    """Three hundred episodes are enough to learn something, and what is logged then can be trained on."""
    before, after = returns(example("own_agent.py"))[:2]
    assert after > before + 10
    dataset = gems_ray.load_dataset(tmp_path / "sac.npz")
    world = gems_ray.load_world("diffuse_topdown")
    assert (dataset.metadata.quality, len(dataset)) == ("sac", 2000)
    *_, report = gems_ray.Trainer(dataset, "bc", max_timesteps=50, world=world)
    assert report["eval/return_mean"] > 0


def test_own_algorithm(example):
    plain, weighted = returns(example("own_algorithm.py"))
    assert plain != weighted


def test_read_results(example, tmp_path, world_folder, dataset):
    dataset.save(tmp_path / "tiny.npz")
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": ["bc", "iql"],
        "worlds": {"diffuse_mix": str(world_folder)},
        "dataset": {"file": str(tmp_path / "tiny.npz")},
        "training": {"max_timesteps": 5},
        "evaluation": {"validation_users": 5, "test_users": 5},
    }
    gems_ray.run(experiment, folder=tmp_path / "runs" / "tiny", in_process=True)
    text = example("read_results.py")
    best = re.search(r"Best cell: (\S+), ([\d.]+) clicks", text)
    cells = gems_ray.open_run(tmp_path / "runs" / "tiny").cells().set_index("cell")
    assert cells["last_return"].max() == pytest.approx(float(best[2]), abs=0.05)
    assert cells.loc[best[1], "last_return"] == cells["last_return"].max()
    assert {"random", "oracle", "behavior", "bc", "iql"} <= set(text.split())


@pytest.mark.slow
def test_tune_asha(example, tmp_path):
    """The scheduler of Ray Tune stops trials, and the checkpoint of the best one is a policy."""
    best, tested = returns(example("tune_asha.py"))
    assert best > 60
    assert tested > 60
    (experiment,) = (tmp_path / "ray_results").glob("OfflineRL_*")
    lengths = [len(path.read_text().splitlines()) for path in experiment.glob("*/result.json")]
    assert len(lengths) == 4
    assert min(lengths) < max(lengths), "one was stopped"
    assert len(list(experiment.glob("*/progress.csv"))) == len(list(experiment.glob("*/events.*"))) == 4


@pytest.mark.slow
def test_tune_pbt(example):
    """A weak trial goes on from a strong one's state, with an alpha of its own."""
    output = example("tune_pbt.py")
    assert len(returns(output)) == 4
    assert re.search(r"alpha [\d.]+ -> [\d.]+", output)
