"""A run folder without any training."""

import pytest

from gems_ray.algorithms import ALGORITHMS
from gems_ray.cli.main import main
from gems_ray.experiments.check import check_experiment
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.machine import machine_report
from tests.runs import evaluation as evaluation

MACHINE = machine_report()


def make_run(path, **more):
    experiment = check_experiment(
        {"environment": "diffuse_mix", "seed": [0, 1, 2], "training": {"max_timesteps": 1000}} | more
    )
    run = RunFolder.create(path, experiment, MACHINE)
    run.add_cells(experiment.cells())
    return run


@pytest.fixture
def command_line(monkeypatch, capsys):
    """Runs a command in this process; returns its exit code and what it wrote to both outputs."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["run_tune.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return call


@pytest.fixture(autouse=True)
def known_algorithms(monkeypatch):
    """What a test registers is not known to the next one in the same process."""
    monkeypatch.setattr(ALGORITHMS, "_entries", dict(ALGORITHMS._entries))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")
