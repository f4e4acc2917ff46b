"""What travels with a submitted run, and where it is put."""

import pytest

from gems_ray.cli.submit import _shown
from gems_ray.cli.submitted import unpack
from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.execution.parcel import FILES, pack
from gems_ray.experiments.check import check_experiment


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with an experiment file, a dataset, a world, and an algorithm of the user's own."""
    folder = tmp_path / "here"
    for file in ("deep/grid.yaml", "data/mine.npz", "worlds/mix/manifest.yaml", "worlds/mix/weights.safetensors"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(file)
    (folder / "mine_here.py").write_text(
        "from gems_ray.algorithms.bc import BC\n\nclass Mine(BC):\n    name = 'mine'\n"
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def packed(parcel, **experiment):
    """The relative paths in the parcel of an experiment."""
    parcel.mkdir()
    place = pack(
        parcel.parent / "here" / "deep" / "grid.yaml",
        check_experiment({"environment": "diffuse_mix", "evaluation": {"test_users": 2}, **experiment}),
        parcel,
    )
    return place, sorted(str(path.relative_to(parcel)) for path in parcel.rglob("*") if path.is_file())


def test_what_the_file_names_by_relative_paths_travels(here, tmp_path):
    place, files = packed(
        tmp_path / "parcel",
        algorithm="mine_here:Mine",
        dataset={"file": "data/mine.npz"},
        worlds={"diffuse_mix": "worlds/mix"},
    )
    assert place == "deep/grid.yaml"
    inside = ["data/mine.npz", "deep/grid.yaml", "worlds/mix/manifest.yaml", "worlds/mix/weights.safetensors"]
    assert files == [*(f"{FILES}/{file}" for file in inside), "mine_here.py"]


def test_what_it_names_by_absolute_paths_stays(here, tmp_path):
    _, files = packed(
        tmp_path / "parcel",
        dataset={"file": str(here / "data" / "mine.npz")},
        worlds={"diffuse_mix": str(here / "worlds" / "mix")},
    )
    assert files == [f"{FILES}/deep/grid.yaml"]


def test_a_path_out_of_the_folder(here, tmp_path):
    (tmp_path / "other.npz").write_text("")
    with pytest.raises(ConfigError, match=r"\.\./other\.npz: what a submitted run needs lies below"):
        packed(tmp_path / "parcel", dataset={"file": "../other.npz"})


def test_files_are_put_into_the_folder_but_none_is_replaced(tmp_path):
    sent, folder = tmp_path / "sent", tmp_path / "folder"
    for place, files in (
        (sent, {"a/new.npz": "1", "a/same.npz": "2", "b/grid.yaml": "3"}),
        (folder, {"a/same.npz": "2", "b/grid.yaml": "0"}),
    ):
        for file, text in files.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text(text)
    unpack(sent, folder, newest="b/grid.yaml")
    assert [(folder / file).read_text() for file in ("a/new.npz", "a/same.npz", "b/grid.yaml")] == ["1", "2", "3"]
    (sent / "a" / "same.npz").write_text("another one")
    (sent / "a" / "first.npz").write_text("not written either")
    with pytest.raises(
        RunFolderError, match=r"a/same\.npz: on the cluster lies another file than the one that was sent"
    ):
        unpack(sent, folder, newest="b/grid.yaml")
    assert (folder / "a" / "same.npz").read_text() == "2"
    assert not (folder / "a" / "first.npz").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["search", "a.yaml", "--study-storage", "postgresql://me:secret@host/db"],
        ["search", "a.yaml", "--study-storage=postgresql://me:secret@host/db"],
    ],
)
def test_no_password_is_listed(words):
    assert "secret" not in " ".join(_shown(words))
    assert "--study-storage" in " ".join(_shown(words))
    assert _shown(words)[-1].endswith("URL")
