"""A run folder without any training."""

import pytest

from gems_ray.evaluation.record import Evaluation
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.machine import machine_report

MACHINE = machine_report()


def evaluation(return_mean, users=100):
    """What users made of a policy, of which a test needs to know no more than the return."""
    return Evaluation(
        return_mean=return_mean,
        return_se=1.0,
        return_per_step=return_mean / 100,
        distinct_items_per_slate=9.5,
        distinct_slates=120,
        repeated_slates=0.25,
        catalogue_coverage=0.1,
        topic_entropy=2.5,
        bored_topics=0.5,
        users=users,
    )


def make_run(path, **more):
    experiment = check_experiment(
        {"environment": "diffuse_mix", "seed": [0, 1, 2], "training": {"max_timesteps": 1000}} | more
    )
    run = RunFolder.create(path, experiment, MACHINE)
    run.add_cells(experiment.cells())
    return run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")
