"""An algorithm of somebody else's package: installed beside gems_ray, trained by Ray's workers, named in the tables."""

import os
import subprocess
import sys

import pandas as pd
import pytest

import gems_ray

PACKAGE = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "foreign-algorithms"
version = "1.0"

[project.entry-points."gems_ray.algorithms"]
shy_cloning = "foreign_algorithms.shy:ShyCloning"
""",
    "foreign_algorithms/__init__.py": "",
    "foreign_algorithms/shy.py": '''
"""Cloning that keeps its actions near the middle of the box."""

from pydantic import Field
from torch.nn.functional import mse_loss

from gems_ray.algorithms.bc import BCConfig, Cloning


class ShyConfig(BCConfig):
    shyness: float = Field(0.5, ge=0, description="Weight of the distance from the middle.")


class ShyCloning(Cloning[ShyConfig]):
    name = "shy_cloning"
    Config = ShyConfig

    def learn(self, batch, noise, phase):
        actions = self.actor(batch.states)
        loss = mse_loss(actions, batch.actions) + self.config.shyness * actions.square().mean()
        self.optimizers["actor"].minimize(loss)
        return {"actor_loss": loss.detach()}


class Hidden(ShyCloning):
    """One that the package's metadata does not name."""

    name = "hidden"
''',
}
EXPERIMENT = """
environment: diffuse_mix
algorithm: [{names}, bc]
worlds: {{diffuse_mix: {world}}}
settings:
  {first}: {{shyness: 0.1, hidden_sizes: [8]}}
dataset: {{file: {dataset}}}
training: {{max_timesteps: 60, evaluation_interval: 60}}
evaluation: {{validation_users: 2, test_users: 3}}
"""
SEARCH = """
search:
  trials: 2
  space: {shy_cloning: {shyness: {uniform: [0, 1]}}}
  confirm: {candidates: 1, seeds: 1}
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """A folder with the installed package."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name, text in PACKAGE.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*install, "--target", target, source], capture_output=True, text=True, check=True)
    return target


@pytest.fixture
def installed(foreign, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(foreign), os.environ.get("PYTHONPATH", "")]))


def write(path, names, world_folder, dataset_file, more=""):
    first = names.split(",")[0]
    path.write_text(EXPERIMENT.format(names=names, first=f'"{first}"', world=world_folder, dataset=dataset_file) + more)


def test_grid_and_table(command, installed, tmp_path, world_folder, dataset_file):
    path = "foreign_algorithms.shy:Hidden"
    write(tmp_path / "grid.yaml", f"shy_cloning, {path}", world_folder, dataset_file)
    done = command("grid", "grid.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    run = gems_ray.open_run(tmp_path / "runs" / "grid")
    assert sorted(run.cells()["algorithm"]) == ["bc", "hidden", "shy_cloning"]
    assert set(run.cells()["status"]) == {"finished"}
    assert {"shy_cloning", "hidden"} <= set(run.table()["algorithm"])
    assert "shy_cloning" in done.stdout and "hidden" in done.stdout
    assert path not in (tmp_path / "runs" / "grid" / "table.md").read_text()
    cells = {cell.name: pd.read_csv(cell / "metrics.csv") for cell in (run.path / "cells").iterdir()}
    assert len({round(frame["train/cloning_error"].iloc[-1], 6) for frame in cells.values()}) == 3
    again = command("resume", "runs/grid")
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.slow
def test_search_finds_settings_of_it(command, installed, tmp_path, world_folder, dataset_file):
    write(tmp_path / "search.yaml", "shy_cloning", world_folder, dataset_file)
    text = (tmp_path / "search.yaml").read_text().replace("[shy_cloning, bc]", "shy_cloning")
    (tmp_path / "search.yaml").write_text(text.replace("shyness: 0.1, ", "") + SEARCH)
    done = command("search", "search.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    run = gems_ray.open_run(tmp_path / "runs" / "search")
    assert set(run.trials()["algorithm"]) == {"shy_cloning"}
    assert run.trials()["shyness"].between(0, 1).all()
    assert "shy_cloning default" in list(run.candidates()["candidate"])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("shy_cloning", "algorithm `shy_cloning` does not exist"),
        ("foreign_algorithms.shy:ShyCloning", "cannot be imported"),
    ],
)
def test_a_package_that_is_not_here_is_one_line(command, tmp_path, world_folder, dataset_file, name, reason):
    write(tmp_path / "grid.yaml", name, world_folder, dataset_file)
    done = command("grid", "grid.yaml")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: grid.yaml:3: ") and reason in line
    assert not (tmp_path / "runs").exists()


def test_a_package_that_breaks_is_one_line(command, installed, foreign, tmp_path, world_folder, dataset_file):
    (foreign / "broken.py").write_text("raise RuntimeError('no luck')\n")
    write(tmp_path / "grid.yaml", "broken:Algorithm", world_folder, dataset_file)
    done = command("grid", "grid.yaml")
    assert done.returncode == 2
    assert "cannot be imported (RuntimeError: no luck)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
