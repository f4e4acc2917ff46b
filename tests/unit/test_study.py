"""Where the study is kept: opened, found damaged, refused, without a password in any file or message."""

import json
import sqlite3

import optuna
import pytest

from gems_ray.errors import RunFolderError, StudyError
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.study import check_storage, make_sampler, open_study


@pytest.fixture
def run(tmp_path):
    (tmp_path / "mine").mkdir()
    return RunFolder(tmp_path / "mine")


def test_sqlite_in_the_run_folder(run):
    place = open_study(run, None)
    assert place.is_private
    assert place.name == "mine"
    assert (run.path / "study.db").exists()
    again = open_study(RunFolder(run.path.rename(run.path.with_name("moved"))), None)
    assert (again.name, again.run) == (place.name, place.run), "a moved folder keeps its study"


@pytest.mark.parametrize("name", ["a?b", "a#b", "100%41", "{x} y"])
def test_any_name_of_a_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    place = open_study(RunFolder(tmp_path / name), None)
    optuna.create_study(study_name="mine", storage=place.storage)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "study.db").stat().st_size
    assert optuna.get_all_study_names(open_study(RunFolder(tmp_path / name), None).storage) == ["mine"]


@pytest.mark.parametrize("text", ['{"storage": null}', '{"name": 3, "run": "a", "storage": null}'])
def test_a_record_of_another_shape_is_damaged(run, text):
    (run.path / "study.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"study\.json: cannot be read"):
        open_study(run, None)


@pytest.mark.parametrize("damage", ["cut", "zeros", "text"])
def test_damaged_file_is_set_aside(run, damage):
    place = open_study(run, None)
    study = optuna.create_study(study_name="mine", storage=place.storage)
    for value in range(60):
        study.add_trial(optuna.create_trial(value=value))
    path = run.path / "study.db"
    whole = path.read_bytes()
    path.write_bytes(
        {"cut": whole[:9000], "zeros": whole[:8192] + bytes(16384) + whole[24576:], "text": b"no database"}[damage]
    )
    fresh = open_study(run, None)
    assert optuna.get_all_study_names(fresh.storage) == []
    assert (run.path / "study.db.damaged").exists()


def test_file_in_use_is_not_damaged(run, monkeypatch):
    open_study(run, None)
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.1))
    other = connect(run.path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StudyError, match="cannot be opened"):
        open_study(run, None)
    other.close()
    assert not list(run.path.glob("*.damaged"))
    assert open_study(run, None).name == "mine"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:secret@127.0.0.1:1/studies",
        "postgresql://127.0.0.1:1/studies?user=user&password=secret",
        "postgresql://user:secret@host:port/studies",
        "secret",
    ],
)
def test_messages_hold_no_password(run, url):
    for opened in (lambda: check_storage(url), lambda: open_study(run, url)):
        with pytest.raises(StudyError) as caught:
            opened()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_run_keeps_to_its_storage(run, tmp_path):
    url = f"sqlite:///{tmp_path}/shared.db"
    assert not open_study(run, url).is_private
    assert json.loads((run.path / "study.json").read_text())["storage"] == url
    assert open_study(run, None).name == "mine", "the storage that it began with"
    with pytest.raises(StudyError, match="began with its study in"):
        open_study(run, f"sqlite:///{tmp_path}/other.db")


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "grid"])
def test_proposals_depend_on_the_seed_alone(name):
    def proposal(seed):
        study = optuna.create_study(sampler=make_sampler(name, seed))
        return study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}).params["x"]

    assert proposal(1) == proposal(1) != proposal(2)
