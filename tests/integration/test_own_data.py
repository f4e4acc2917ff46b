"""The page on own data, command by command: with the published files, and with files of their format made here."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import gems_ray
from gems_ray.worldmaking.collect import collect_dataset
from tests.unit.test_import_world import write_original

FIVE = ("observations", "actions", "rewards", "next_observations", "terminals")


def published(request):
    """The folder of the published files, which cannot be shipped."""
    named = os.environ.get("GEMS_PUBLISHED")
    return Path(named) if named else request.config.rootpath.parent / "shared" / "reference" / "published"


def bash(request, folder, code):
    """Runs commands of the page in a folder that has the program's script."""
    python = folder / "bin" / "python"
    if not python.exists():
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        (folder / "run_tune.py").symlink_to(request.config.rootpath / "run_tune.py")
    return subprocess.run(
        ["bash", "-euc", code],
        cwd=folder,
        env={**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def files(request, tmp_path):
    """The files that the page expects, made here or copied, in a folder of their own."""
    folder = tmp_path / "published"
    if request.param == "made here":
        world = gems_ray.load_world("diffuse_topdown")
        made = write_original(folder, world)
        made["items"].rename(folder / "item_embeddings_diffuse.npy")
    else:
        source = published(request)
        if not source.is_dir():
            pytest.skip(f"the published files are not in {source.name}/ beside the checkout; GEMS_PUBLISHED names them")
        shutil.copytree(source, folder)
    return tmp_path


def five_arrays(world_folder, path, episodes):
    """A file as it is published: what the agent of the world logs, and nothing that names the world."""
    dataset = collect_dataset(gems_ray.load_world(world_folder), "expert", episodes, seed=11)
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **{name: getattr(dataset, name) for name in FIVE})


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("files", ["made here", "published"], indirect=True)
def test_every_command_of_the_page(files, request):
    page = (request.config.rootpath / "docs" / "own_data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(bash|yaml)\n(.*?)```", page, flags=re.DOTALL)
    commands = [code for kind, code in blocks if kind == "bash"]
    (files / "own.yaml").write_text(next(code for kind, code in blocks if kind == "yaml"))
    assert "world import" in commands[0]
    said = []
    for number, code in enumerate(commands):
        done = bash(request, files, code)
        assert done.returncode == 0, f"{code}{done.stdout}{done.stderr}"
        said.append(done.stdout)
        if number == 0:
            five_arrays(files / "worlds" / "published", files / "offline_datasets" / "diffuse_topdown_expert.npz", 200)
    expert = float(re.search(r"expert: +([\d.]+) \+-", said[0])[1])
    if request.node.callspec.params["files"] == "published":
        assert expert == pytest.approx(284.5, abs=7)
    assert "the five published arrays" in said[1]
    assert "all inside the action box" in said[1]
    assert "2,000 of 2,000 are explained" in said[2]
    assert "Not sure" not in said[2]
    table = gems_ray.open_run(files / "runs" / "own").table()
    scores = table.set_index("algorithm")["last_score"]
    assert scores["behavior"] == pytest.approx(100)
    assert scores["td3_bc"] > 20
    assert (files / "tables" / "table.md").is_file()
