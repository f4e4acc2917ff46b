"""The commands for worlds and datasets of others, as a user starts them."""

import json

import numpy as np
import pytest

from gems_ray.data.npz import load_dataset
from gems_ray.world.bundle import find_world, load_world
from gems_ray.worldmaking.collect import collect_dataset
from tests.unit.test_import_world import write_original

FIVE = ("observations", "actions", "rewards", "next_observations", "terminals")


@pytest.fixture
def foreign_file(tmp_path):
    """Episodes of a shipped world of which only the five published arrays are left."""
    dataset = collect_dataset(find_world("diffuse_mix"), "expert", 12, seed=3)
    path = tmp_path / "diffuse_mix_expert.npz"
    np.savez(path, **{name: getattr(dataset, name) for name in FIVE})
    return path


def test_a_foreign_file_is_checked_bound_and_brought_to_minari_and_back(command, foreign_file, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    checked = command("dataset", "check", foreign_file.name, "--world", "diffuse_mix")
    assert checked.returncode == 0, checked.stderr
    assert "the five published arrays" in checked.stdout
    assert "all inside the action box" in checked.stdout

    before = foreign_file.read_bytes()
    refused = command("dataset", "attach", foreign_file.name, "--world", "diffuse_topdown")
    assert (refused.returncode, foreign_file.read_bytes()) == (2, before)
    assert "error: diffuse_mix_expert.npz: does not belong to world" in refused.stderr
    bound = command("dataset", "attach", foreign_file.name, "--world", "diffuse_mix", "--output", "bound.npz")
    assert bound.returncode == 0, bound.stderr
    assert f"bound.npz: bound to world {find_world('diffuse_mix').fingerprint} (diffuse_mix)." in bound.stdout
    metadata = load_dataset(tmp_path / "bound.npz").metadata
    assert (metadata.environment, metadata.quality) == ("diffuse_mix", "expert")

    exported = command("dataset", "export", "bound.npz", "--minari", "mine/mix-v0")
    assert exported.returncode == 0, exported.stderr
    again = command("dataset", "import", "--minari", "mine/mix-v0", "--output", "back.npz")
    assert again.returncode == 0, again.stderr
    with np.load(tmp_path / "bound.npz") as one, np.load(tmp_path / "back.npz") as other:
        assert set(one.files) == set(other.files)
        for name in FIVE:
            np.testing.assert_array_equal(one[name], other[name])
        assert json.loads(str(one["metadata"])) == json.loads(str(other["metadata"]))


def test_a_file_that_cannot_be_used_is_checked_with_exit_code_2(command, foreign_file, tmp_path):
    with np.load(foreign_file) as arrays:
        np.savez(tmp_path / "nan.npz", **{**arrays, "rewards": np.full(1200, np.nan, dtype=np.float32)})
    checked = command("dataset", "check", "nan.npz")
    assert checked.returncode == 2
    assert "rewards" in checked.stdout
    assert "Traceback" not in checked.stdout + checked.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_world_of_original_files_is_made_and_one_without_duplicates_of_it(command, world, tmp_path):
    files = write_original(tmp_path / "original", world)
    paths = [word for name in ("gems", "agent", "items", "bounds") for word in (f"--{name}", files[name])]
    made = command("world", "import", "--environment", "diffuse_mix", *paths, "--output", "imported")
    assert made.returncode == 0, made.stderr
    assert "expert:" in made.stdout
    imported = load_world(tmp_path / "imported")
    np.testing.assert_array_equal(imported.items, world.items)

    done = command("world", "without-duplicates", "imported", "--output", "distinct")
    assert done.returncode == 0, done.stderr
    distinct = load_world(tmp_path / "distinct")
    assert distinct.fingerprint != imported.fingerprint
    logged = collect_dataset(distinct, "random", 1, seed=0)
    assert all(len(set(slate)) == 10 for slate in logged.slates.tolist())
    twice = command("world", "without-duplicates", "imported", "--output", "distinct")
    assert twice.returncode == 2
    assert "a finished world is here already" in twice.stderr

    wrong = command("world", "import", "--environment", "diffuse_topdown", *paths, "--output", "wrong")
    assert wrong.returncode == 2
    assert not (tmp_path / "wrong" / "manifest.yaml").exists()
