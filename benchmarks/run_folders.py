"""How long `status`, `export` and `resume` take on a run of 1,000 finished cells.

    python benchmarks/run_folders.py [--cells 1000] [--rounds 2]

The goals on 2 idle cores are 2 s, 5 s and 10 s; `resume` finds nothing to do. The cells were never trained: their
records are written as a run writes them.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from startup import run

from gems_ray import metrics
from gems_ray.data.npz import find_dataset
from gems_ray.evaluation.record import Evaluation
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import (
    REFERENCE_POLICIES,
    CellResult,
    FinalEvaluations,
    Fingerprints,
    References,
    Report,
    ValidationReturns,
)
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.machine import machine_report
from gems_ray.world.bundle import find_world
from gems_ray.worldmaking.collect import collect_dataset

ENVIRONMENT, EPISODES, TEST_USERS, ROWS = "diffuse_mix", 2, 10, 20
GOALS = {"status": 2, "export": 5, "resume": 10}  # seconds
LEARNED = (metrics.Q_DATASET, metrics.Q_POLICY, metrics.Q_RANDOM, metrics.Q_BOUND, metrics.Q_ABOVE_BOUND)
LEARNED += (metrics.TD_ERROR, metrics.CLONING_ERROR, metrics.BEST_RETURN)
LEARNED += tuple(map(metrics.train, ("critic_loss", "actor_loss", "bc_loss", "q_weight")))
LEARNED += tuple(map(metrics.gradient_norm, ("actor", "critic")))


def make_run(folder: Path, cells: int) -> Path:
    """A run folder whose cells have all ended, and its dataset; returns the run folder."""
    collected = collect_dataset(find_world(ENVIRONMENT), "random", EPISODES, seed=0)
    datasets = folder / "offline_datasets"
    collected.save(find_dataset(ENVIRONMENT, "random", datasets))
    experiment = check_experiment(
        {
            "environment": ENVIRONMENT,
            "algorithm": "td3_bc",
            "seed": list(range(cells)),
            "settings": {"td3_bc": {"hidden_sizes": [16]}},
            "dataset": {"quality": "random", "episodes": EPISODES, "folder": str(datasets)},
            "training": {"max_timesteps": 100_000},
            "evaluation": {"test_users": TEST_USERS},
        }
    )
    made = RunFolder.create(folder / "run", experiment, machine_report())
    rng = np.random.default_rng(0)
    made.write_references(ENVIRONMENT, References(**{name: evaluation(rng) for name in REFERENCE_POLICIES}))
    made.add_cells(experiment.cells())
    fingerprints = Fingerprints(dataset=collected.fingerprint, world=collected.world_fingerprint)
    for cell in experiment.cells():
        write_cell(made, experiment, cell, fingerprints, rng)
    return made.path


def write_cell(
    made: RunFolder, experiment: Experiment, cell: Cell, fingerprints: Fingerprints, rng: np.random.Generator
) -> None:
    """The reports and the result of a cell."""
    folder, updates = made.cell(cell.name), experiment.training.max_timesteps
    for step in np.linspace(0, updates, ROWS, dtype=int):
        row: Report = {metrics.STEP: int(step), metrics.SECONDS: step / 250, metrics.UPDATES_PER_SECOND: 250.0}
        row |= evaluation(rng).as_metrics() | {name: rng.normal(10) for name in LEARNED}
        folder.append_metrics(row)
    folder.write_result(
        CellResult(
            status="finished",
            updates=updates,
            seconds=row[metrics.SECONDS],
            best_updates=updates,
            fingerprints=fingerprints,
            report=row,
            validation=ValidationReturns(last=row[metrics.RETURN_MEAN], best=row[metrics.BEST_RETURN]),
            test=FinalEvaluations(last=evaluation(rng), best=evaluation(rng)),
        )
    )


def evaluation(rng: np.random.Generator) -> Evaluation:
    """Some numbers that users could have made of a policy."""
    return Evaluation(
        return_mean=rng.normal(100),
        return_se=rng.random(),
        return_per_step=rng.random(),
        distinct_items_per_slate=10 * rng.random(),
        distinct_slates=int(rng.integers(1_000)),
        repeated_slates=rng.random(),
        catalogue_coverage=rng.random(),
        topic_entropy=rng.random(),
        bored_topics=rng.random(),
        users=TEST_USERS,
    )


def main() -> None:
    """Prints the seconds of every command, beside those of a command that reads nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_run(folder, arguments.cells)
        print(f"--help {min(run(folder, '--help') for _ in range(arguments.rounds)):6.1f} s", flush=True)
        for command, goal in GOALS.items():
            seconds = [run(folder, command, str(made)) for _ in range(arguments.rounds)]
            print(f"{command} {min(seconds):6.1f} s   best of {', '.join(f'{s:.1f}' for s in seconds)}; goal {goal} s")


if __name__ == "__main__":
    main()
