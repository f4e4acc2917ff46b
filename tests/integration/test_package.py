"""The wheel in an environment of its own, outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pandas as pd
import pytest
import yaml

SOURCES = ("gems_ray", "tune_configs", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory, request):
    """Built from a copy, so that the checkout stays as it is."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        path = request.config.rootpath / name
        if path.is_dir():
            shutil.copytree(path, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run(build, cwd=source, capture_output=True, text=True, check=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs `gems-ray` where the wheel alone was installed; what it depends on is borrowed from this interpreter."""
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(pip, capture_output=True, text=True, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    cleared = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*arguments):
        line = [environment / "bin" / "gems-ray", *arguments]
        variables = {**cleared, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
        return subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, check=False)

    run.folder = folder
    return run


def test_the_wheel_holds_one_package_with_worlds_and_configs(wheel, request):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gems_ray"}
    configs = {path.name for path in (request.config.rootpath / "tune_configs").iterdir()}
    assert {name.split("/")[2] for name in names if name.startswith("gems_ray/tune_configs/")} == configs
    assert "gems_ray/world/shipped/diffuse_mix/weights.safetensors" in names


def test_its_own_configs_run_outside_a_checkout(installed, request):
    written = installed("init-configs", "mine")
    assert written.returncode == 0, written.stderr
    folder = installed.folder / "mine"
    for path in (request.config.rootpath / "tune_configs").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    (folder / "demo.yaml").write_text("environment: diffuse_mix\n")
    assert "Wrote 0 files" in installed("init-configs", "mine").stdout
    assert (folder / "demo.yaml").read_text() == "environment: diffuse_mix\n", "what a user has changed stays"

    planned = installed("plan", "mine/grid.yaml")
    assert planned.returncode == 0, planned.stderr
    assert "cells: 9, of which 0 have ended" in planned.stdout

    data = yaml.safe_load((folder / "td3_bc.yaml").read_text())
    data |= {"environment": "diffuse_mix", "seed": 0, "resources": {"cpu": 1}}
    data["dataset"] = {"quality": "random", "episodes": 20}
    data["training"] = {"max_timesteps": 100, "evaluation_interval": 100, "device": "cpu"}
    data["evaluation"] = {"validation_users": 5, "test_users": 10}
    (folder / "small.yaml").write_text(yaml.safe_dump(data))
    done = installed("grid", "mine/small.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    cells = pd.read_csv(installed.folder / "runs" / "small" / "cells.csv")
    assert set(cells["status"]) == {"finished"}


def test_it_speaks_of_itself_by_its_name(installed):
    refused = installed("grid", "none.yaml", "--nmae", "x")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: gems-ray grid: No such option: --nmae")
    assert "Usage: gems-ray" in installed("--help").stdout
    assert "`gems-ray grid tune_configs/demo.yaml` makes one" in installed("status", "--storage", "none").stdout
