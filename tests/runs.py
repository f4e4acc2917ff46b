"""Run folders whose cells were never trained: their records are written as a run writes them."""

import numpy as np

from gems_ray import metrics
from gems_ray.evaluation.record import Evaluation
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.records import CellResult, FinalEvaluations, References, ValidationReturns
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.machine import machine_report


def evaluation(return_mean, users=100, distinct_slates=120):
    """What users made of a policy, of which a test needs to know no more than the return."""
    return Evaluation(
        return_mean=return_mean,
        return_se=1.0,
        return_per_step=return_mean / 100,
        distinct_items_per_slate=9.5,
        distinct_slates=distinct_slates,
        repeated_slates=0.25,
        catalogue_coverage=0.1,
        topic_entropy=2.5,
        bored_topics=0.5,
        users=users,
    )


def finished_grid(path, returns, seeds=3, reports=3, environments=("diffuse_mix",), **more):
    """A grid whose cells have ended: by algorithm the return, to which every seed adds its own number.

    Args:
        path: of the run folder.
        returns: by algorithm, clicks per episode of seed 0.
        seeds: of each algorithm.
        reports: of each cell, from 0 to 1,000 updates.
        environments: of the grid.
        more: of the experiment.
    """
    experiment = check_experiment(
        {
            "environment": list(environments),
            "algorithm": list(returns),
            "seed": list(range(seeds)),
            "training": {"max_timesteps": 1_000},
        }
        | more
    )
    run = RunFolder.create(path, experiment, machine_report())
    run.add_cells(experiment.cells())
    for environment in environments:
        known = {"random": 30.0, "oracle": 90.0, "behavior": 230.0}
        run.write_references(environment, References(**{name: evaluation(value) for name, value in known.items()}))
    for cell in experiment.cells():
        folder, last = run.cell(cell.name), returns[cell.algorithm] + 0.5 * cell.seed
        rng = np.random.default_rng(cell.seed)
        for step in np.linspace(0, 1_000, reports, dtype=int):
            value = last * (0.3 + 0.7 * step / 1_000) + rng.normal()
            row = {metrics.STEP: int(step), metrics.SECONDS: step / 250, metrics.CLONING_ERROR: 0.1}
            row |= evaluation(value).as_metrics() | {metrics.train("actor_loss"): 1.0}
            if cell.algorithm not in ("bc", "bc_best"):
                row |= {metrics.Q_POLICY: 40.0 + step / 100, metrics.Q_BOUND: 90.0, metrics.Q_ABOVE_BOUND: 0.0}
            folder.append_metrics(row)
        folder.write_result(
            CellResult(
                status="finished",
                updates=1_000,
                seconds=4.0,
                best_updates=1_000,
                report=row,
                validation=ValidationReturns(last=last, best=last),
                test=FinalEvaluations(last=evaluation(last), best=evaluation(last)),
            )
        )
        folder.add_log("trained to the end")
    return run
