"""`OfflineRL` in a script of Ray Tune that is killed, and restored by Tune itself."""

import json
import os
import subprocess
import sys

import pytest

from tests.integration.conftest import end_family, wait_for

SCRIPT = """
import json
import sys
from pathlib import Path

import ray
from ray import tune

from gems_ray.tune import OfflineRL

def main(world, dataset):
    ray.init(address="local", log_to_driver=False)
    folder = Path("results").absolute()
    if tune.Tuner.can_restore(str(folder / "mine")):
        tuner = tune.Tuner.restore(str(folder / "mine"), OfflineRL, resume_errored=True)
    else:
        tuner = tune.Tuner(
            OfflineRL,
            param_space={
                "environment": "diffuse_mix",
                "seed": tune.grid_search([0, 1]),
                "settings": {"hidden_sizes": [32, 32], "batch_size": 64},
                "world": world,
                "dataset": {"file": dataset},
                "training": {"max_timesteps": 4000, "evaluation_interval": 250},
                "evaluation": {"validation_users": 10, "test_users": 20},
            },
            run_config=tune.RunConfig(
                name="mine",
                storage_path=str(folder),
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=5),
                verbose=0,
            ),
        )
    results = tuner.fit()
    assert not results.errors, results.errors
    kept = ("updates", "eval/return_mean", "eval/best_return_mean", "best_updates", "train/q_policy")
    tested = ("test/last/return_mean", "test/best/return_mean")
    rows = {result.config["seed"]: [result.metrics[key] for key in (*kept, *tested)] for result in results}
    begun = [result.metrics["iterations_since_restore"] for result in results]
    print(json.dumps({"rows": rows, "begun": begun}))

main(*sys.argv[1:])
"""


@pytest.fixture
def start(tmp_path, world_folder, dataset_file, request):
    """Starts the script in a folder of the given name."""

    def start_script(name):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(request.config.rootpath)}
        # Else Tune writes its state every ten seconds. It restores from the checkpoint that its state names, which is
        # not the last one; so the script keeps some more.
        environment["TUNE_GLOBAL_CHECKPOINT_S"] = "1"
        # As the script sees them, and not its workers, which Tune moves into the folders of their trials.
        paths = [os.path.relpath(path, folder) for path in (world_folder, dataset_file)]
        line = [sys.executable, "-c", SCRIPT, *paths]
        return subprocess.Popen(
            line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start_script


def finish(process):
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return json.loads(next(line for line in output.splitlines() if line.startswith('{"rows"')))


@pytest.mark.slow
def test_restored_by_tune_after_a_kill_it_ends_with_the_numbers_of_an_undisturbed_one(start, tmp_path):
    undisturbed = finish(start("whole"))
    process = start("killed")
    reports = tmp_path / "killed" / "results" / "mine"

    def evaluations():
        return [len(path.read_text().splitlines()) for path in reports.glob("*/progress.csv")]

    wait_for(lambda: len(evaluations()) == 2 and min(evaluations()) > 6, process)
    end_family(process)
    restored = finish(start("killed"))
    assert restored["rows"] == undisturbed["rows"]
    assert max(restored["begun"]) < max(undisturbed["begun"]), "it went on, and did not begin again"
