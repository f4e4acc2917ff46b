"""Where the Optuna study of a search is kept: SQLite in the run folder, or a database that many can write to."""

import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import RDBStorage

from gems_ray.errors import StudyError
from gems_ray.experiments.cell_folder import set_aside
from gems_ray.experiments.records import StudyFacts
from gems_ray.experiments.run_folder import STUDY, RunFolder
from gems_ray.program import program_name
from gems_ray.record import read_record, write_record

SQLITE_FILE = "study.db"
PASSWORD = "***"
OPENINGS = 5


@dataclass(frozen=True, slots=True)
class StudyPlace:
    """An opened storage, and what marks a run's own trials in it."""

    storage: RDBStorage
    name: str
    run: str
    is_private: bool  # no other run writes to it


def open_study(run: RunFolder, url: str | None) -> StudyPlace:
    """Opens the storage of a run's study, and remembers it in the run folder without its password.

    Args:
        run: folder of the search.
        url: SQLAlchemy URL; None for the one that the run began with, or SQLite in the run folder.
    Raises:
        StudyError: the storage cannot be opened, or the run began with another one.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = read_record(run.path / STUDY, StudyFacts)
    public = None if url is None else _without_password(_parse(url))
    if known and url is None:
        url = public = known.storage
        if url and PASSWORD in url:
            raise StudyError(f"{run.path}: its study is in {url}. Give --study-storage with the password to go on.")
    elif known and known.storage != public:
        place = known.storage or f"{run.path / SQLITE_FILE} (without --study-storage)"
        raise StudyError(f"{run.path}: began with its study in {place}, not in {public}.")
    facts = known or StudyFacts(name=run.path.resolve().name, storage=public, run=uuid.uuid4().hex)
    storage = _open_sqlite(run) if url is None else _open(url)
    write_record(run.path / STUDY, facts)
    return StudyPlace(storage, facts.name, facts.run, is_private=url is None)


@contextmanager
def lost_storage_in_one_line(place: StudyPlace) -> Iterator[None]:
    """Turns the end of a database, or of its disk, into one line: the cells are saved, and a run can go on."""
    try:
        yield
    except StorageInternalError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise StudyError(
            f"study `{place.name}`: its storage does not answer any more ({reason}). "
            f"All cells are saved; `{program_name()} resume` goes on when it does."
        ) from None


def check_storage(url: str) -> None:
    """Makes sure that a database answers, before anything else is begun.

    Raises:
        StudyError: the URL makes no sense, or nothing answers there.
    """
    parsed = _parse(url)
    with _opening_errors_in_one_line(parsed):
        sqlalchemy.create_engine(_with_driver(parsed)).connect().close()


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler that proposes the next settings; a grid's points are all given beforehand.

    Args:
        name: tpe, gp, random or grid.
        seed: of this proposal.
    """
    if name == "gp":
        return GPSampler(seed=seed)
    if name == "tpe":
        return TPESampler(seed=seed)
    return RandomSampler(seed=seed)


def _open_sqlite(run: RunFolder) -> RDBStorage:
    """The study in the run folder; a damaged one is set aside, and made anew from the records of the trials."""
    path = run.path / SQLITE_FILE
    if path.exists() and not _is_whole(path):
        for file in (path, *path.parent.glob(f"{path.name}-*")):  # its journal too
            set_aside(file)
    # Not as text: a `?` or `#` in the path would mean something else.
    return _open(sqlalchemy.URL.create("sqlite", database=str(path.resolve())).render_as_string())


def _is_whole(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a file."""
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            return bool(connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)])
    except sqlite3.OperationalError as error:  # in use, unreadable: no sign of damage
        raise StudyError(f"{path}: cannot be opened ({error}).") from None
    except sqlite3.DatabaseError:
        return False


def _open(url: str) -> RDBStorage:
    parsed = _parse(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    options: dict[str, Any] = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    address = _with_driver(parsed).render_as_string(hide_password=False)
    with _opening_errors_in_one_line(parsed):
        for _ in range(OPENINGS):
            try:
                return RDBStorage(address, engine_kwargs=options)
            except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError):
                time.sleep(1)  # another run makes the tables of a new database at the same moment
        return RDBStorage(address, engine_kwargs=options)


def _without_password(url: sqlalchemy.URL) -> str:
    """The URL without its password, wherever it stands."""
    if "password" in url.query:
        url = url.update_query_dict({"password": PASSWORD})
    return url.render_as_string(hide_password=True)


def _with_driver(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """The URL with the driver that the `postgresql` extra brings, where it names none."""
    return url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url


@contextmanager
def _opening_errors_in_one_line(url: sqlalchemy.URL) -> Iterator[None]:
    """Turns what a database has to say into one line, without the password."""
    place = f"--study-storage {_without_password(url)}"
    try:
        yield
    except ImportError as error:
        raise StudyError(
            f"{place}: its driver is not installed ({error}). `pip install gems_ray[postgresql]` brings PostgreSQL's, "
            "for URLs that begin with postgresql://."
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        raise StudyError(f"{place}: cannot be opened ({str(error).splitlines()[0]}).") from None


def _parse(url: str) -> sqlalchemy.URL:
    try:
        return sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # not repeated: it may hold a password
        raise StudyError(
            "--study-storage: expected a database URL such as postgresql://user:password@host/database."
        ) from None
