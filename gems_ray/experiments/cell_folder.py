"""The folder of one cell: what determines it, its metrics, its log, its checkpoints, how it ended.

Nothing here needs ray or torch.
"""

import contextlib
import csv
import fcntl
import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gems_ray.config import below, plain, read_yaml, validate
from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.experiments.spec import DatasetSpec, EvaluationSpec, TrainingSpec
from gems_ray.files import log_handler, write_text_atomically
from gems_ray.metrics import STEP

FINISHED, DIVERGED, PRUNED, FAILED = "finished", "diverged", "pruned", "failed"
RUNNING, UNFINISHED, PENDING = "running", "unfinished", "pending"
WITH_RESULT = (FINISHED, DIVERGED)  # trained to the end and tested; `diverged`: Q-values far above what rewards can pay
ENDED = (*WITH_RESULT, PRUNED, FAILED)  # `pruned`: a search stopped it early
DESCRIBED: dict[str, Any] = {
    "environment": str,
    "algorithm": str,
    "seed": int,
    "settings": dict,
    "world": str,
    "dataset": DatasetSpec,
    "training": TrainingSpec,
    "evaluation": EvaluationSpec,
}
DESCRIPTION, METRICS, RESULT, LOG, LOCK = "cell.yaml", "metrics.csv", "result.json", "log.txt", ".lock"


@dataclass(frozen=True, slots=True)
class CellFolder:
    """Files of one cell."""

    path: Path

    @property
    def last_checkpoint(self) -> Path:
        """Where training continues."""
        return self.path / "last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        """The policy with the highest validation return."""
        return self.path / "best.safetensors"

    @property
    def log(self) -> Path:
        """What happened to the cell, a line each, with the traceback of an unexpected error."""
        return self.path / LOG

    @property
    def description(self) -> dict[str, Any]:
        """What determines the cell."""
        path = self.path / DESCRIPTION
        try:
            document = read_yaml(path)
            found = plain(document.data)
            for key, kind in DESCRIBED.items():
                if key not in found:
                    raise ConfigError(f"{path}: `{key}` is missing.")
                if kind in (str, int, dict):
                    if not isinstance(found[key], kind):
                        raise ConfigError(f"{path}: `{key}` is no {kind.__name__}.")
                else:
                    with document.located(), below(key):
                        validate(found[key], kind)
        except ConfigError as error:
            raise RunFolderError(f"{error} `run_tune.py resume` writes it anew.") from None
        return found

    @property
    def status(self) -> str:
        """finished, diverged (finished as well), pruned, failed, unfinished (has begun) or pending."""
        return self.status_by(self.result())

    def status_by(self, result: Mapping[str, Any] | None) -> str:
        """The status, from a result that has been read already."""
        if result is not None:
            return str(result["status"])
        return UNFINISHED if (self.path / METRICS).exists() else PENDING

    def result(self) -> dict[str, Any] | None:
        """How the cell ended; None while it has not.

        Raises:
            RunFolderError: the file is damaged.
        """
        return read_json(self.path / RESULT, _check_result)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Records how the cell ended."""
        write_json(self.path / RESULT, result)

    def mend(self) -> None:
        """Sets a damaged result aside, so that the cell ends again."""
        try:
            self.result()
        except RunFolderError:
            set_aside(self.path / RESULT)

    def sweep(self) -> None:
        """Removes what a killed process left of the files that only the owner of the cell writes; hold the lock."""
        for name in (METRICS, self.last_checkpoint.name, self.best_checkpoint.name):
            for partial in self.path.glob(f".{name}.*.partial"):
                partial.unlink(missing_ok=True)

    def reopen(self) -> None:
        """Lets a failed cell run again."""
        if self.status == FAILED:
            (self.path / RESULT).unlink()

    def lock(self, timeout_s: float = 0) -> FileLock:
        """Takes the cell for this process, on every machine that sees the folder; given back with `release`.

        Raises:
            TimeoutError: another process has it.
        """
        lock = FileLock(self.path / LOCK)
        lock.acquire(timeout=timeout_s)
        return lock

    def is_locked(self) -> bool:
        """Whether a process trains the cell at this moment."""
        return is_locked(self.path / LOCK)

    def open_log(self) -> logging.Handler:
        """A handler that adds to the cell's log."""
        return log_handler(self.log, "%(asctime)s %(levelname)-7s %(message)s")

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv; a last line that was cut off, and whatever is no row of numbers, is left out."""
        rows: list[dict[str, str]] = []
        with contextlib.suppress(csv.Error):  # binary
            rows.extend(row for row in csv.DictReader(io.StringIO(self._whole_lines())) if _is_row(row))
        return rows

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a row; the first row's keys are the header, which grows where a later row has more."""
        path, header = self.path / METRICS, self._header()
        if new := [key for key in row if key not in header] if header else []:
            header += new
            self._write_metrics(self.metrics(), header)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header or list(row), restval="")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({key: "" if value != value else value for key, value in row.items()})

    def keep_metrics(self, key: str, largest: int) -> None:
        """Drops rows beyond a checkpoint, and a line that was cut off; a file without any row is set aside."""
        path, found = self.path / METRICS, self.metrics()
        rows = [row for row in found if int(row[key]) <= largest]
        if rows:
            self._write_metrics(rows, list(rows[0]))
        elif not found and self._whole_lines():
            set_aside(path)
        else:
            path.unlink(missing_ok=True)

    def _write_metrics(self, rows: Sequence[Mapping[str, str]], header: Sequence[str]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, header, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(self.path / METRICS, text.getvalue())

    def _header(self) -> list[str]:
        return next(csv.reader(self._whole_lines().splitlines()[:1]), [])

    def _whole_lines(self) -> str:
        try:
            text = (self.path / METRICS).read_bytes()
        except FileNotFoundError:
            return ""
        return text[: text.rfind(b"\n") + 1].decode("utf-8", errors="replace")


def _is_row(row: Mapping[Any, Any]) -> bool:
    if None in row or None in row.values():  # too long, too short
        return False
    try:
        int(row[STEP])
        for value in row.values():
            float(value or 0)
    except (KeyError, ValueError):
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # another account's: a lock can be tried by whoever may read its file
        return _is_locked_for_readers(path)
    lock.release()
    return False


def _is_locked_for_readers(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(descriptor)  # gives the lock back
    return False


def set_aside(path: Path) -> None:
    """Renames a file that cannot be read, so that it is neither used nor lost."""
    path.replace(path.with_name(f"{path.name}.damaged"))


def read_json(path: Path, check: Callable[[dict[str, Any]], None] = lambda value: None) -> dict[str, Any] | None:
    """Content of a JSON file; None where there is none.

    Args:
        path: of the file.
        check: raises ValueError, KeyError or TypeError where the content is not what it must be.
    Raises:
        RunFolderError: it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, found {type(value).__name__}")
        check(value)
    except FileNotFoundError:
        return None
    except KeyError as error:
        raise RunFolderError(f"{path}: cannot be read ({error} is missing). Remove it to repeat that part.") from None
    except (ValueError, TypeError, OSError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}). Remove it to repeat that part.") from None
    return value


def check_kind(value: Any, kind: type | tuple[type, ...], name: str) -> None:
    """Raises ValueError unless a value of a JSON or YAML file is of a kind."""
    if not isinstance(value, kind):
        raise ValueError(f"{name}: found {value!r}")


def check_numbers(value: Any, name: str) -> None:
    """Raises ValueError unless all values of an object are numbers, or missing."""
    check_kind(value, dict, name)
    for key, number in value.items():
        check_kind(number, (int, float, type(None)), f"{name}.{key}")


def _check_result(result: dict[str, Any]) -> None:
    if result["status"] not in ENDED:
        raise ValueError(f"status: found {result['status']!r}")
    check_kind(result.get("reason"), (str, type(None)), "reason")
    check_kind(result.get("fingerprints", {}), dict, "fingerprints")
    check_numbers({key: result.get(key) for key in ("updates", "seconds", "best_updates")}, "result")
    for key in ("report", "validation", "offline"):
        check_numbers(result.get(key, {}), key)
    test = result.get("test", {})
    check_kind(test, dict, "test")
    for name, values in test.items():
        check_numbers(values, f"test.{name}")
    measured = list(result.get("report", {}).values())
    if "offline" in result:
        measured += [result["offline"][key] for key in ("fqe_value", "fqe_spread")]
    if test:
        measured.append(test["last"]["return_mean"])
    for value in measured:
        check_kind(value, (int, float), "a measurement")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text_atomically(path, json.dumps(dict(value), indent=2) + "\n")
