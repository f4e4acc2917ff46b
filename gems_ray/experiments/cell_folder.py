"""The folder of one cell: what determines it, its metrics, its log, its checkpoints, how it ended.

Nothing here needs ray or torch.
"""

import csv
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gems_ray.config import plain, read_yaml
from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.files import log_handler, write_text_atomically

FINISHED, DIVERGED, PRUNED, FAILED = "finished", "diverged", "pruned", "failed"
RUNNING, UNFINISHED, PENDING = "running", "unfinished", "pending"
WITH_RESULT = (FINISHED, DIVERGED)  # trained to the end and tested; `diverged`: Q-values left what rewards can pay
ENDED = (*WITH_RESULT, PRUNED, FAILED)  # `pruned`: a search stopped it early
DESCRIBED = {"environment", "algorithm", "seed", "settings", "world", "dataset", "training", "evaluation"}
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
        try:
            found = plain(read_yaml(self.path / DESCRIPTION).data)
            if missing := DESCRIBED - found.keys():
                raise ConfigError(f"{self.path / DESCRIPTION}: `{missing.pop()}` is missing.")
        except ConfigError as error:
            raise RunFolderError(f"{error} `run_tune.py resume` writes it anew.") from None
        return found

    @property
    def status(self) -> str:
        """finished, diverged (finished as well), pruned, failed, unfinished (has begun) or pending."""
        result = self.result()
        if result is not None:
            return str(result["status"])
        return UNFINISHED if (self.path / METRICS).exists() else PENDING

    def result(self) -> dict[str, Any] | None:
        """How the cell ended; None while it has not.

        Raises:
            RunFolderError: the file is damaged.
        """
        return read_json(self.path / RESULT)

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Records how the cell ended."""
        write_json(self.path / RESULT, result)

    def mend(self) -> None:
        """Sets a damaged result aside, so that the cell ends again."""
        try:
            self.result()
        except RunFolderError:
            set_aside(self.path / RESULT)

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
        """Rows of metrics.csv; a last line that was cut off is left out."""
        try:
            text = (self.path / METRICS).read_bytes()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1].decode("utf-8", errors="replace")
        rows = csv.DictReader(io.StringIO(whole))
        return [row for row in rows if None not in row and None not in row.values()]  # neither too long nor too short

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds a row; the first row's keys are the header."""
        path = self.path / METRICS
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({key: "" if value != value else value for key, value in row.items()})

    def keep_metrics(self, key: str, largest: int) -> None:
        """Drops rows beyond a checkpoint, and a line that was cut off."""
        rows = [row for row in self.metrics() if int(row[key]) <= largest]
        path = self.path / METRICS
        if not rows:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(path, text.getvalue())


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except OSError:  # a copy that may only be read: nobody trains in it
        return False
    lock.release()
    return False


def set_aside(path: Path) -> None:
    """Renames a file that cannot be read, so that it is neither used nor lost."""
    path.replace(path.with_name(f"{path.name}.damaged"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Content of a JSON file; None where there is none.

    Raises:
        RunFolderError: it is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"expected an object, found {type(value).__name__}")
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}). Remove it to repeat that part.") from None
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text_atomically(path, json.dumps(dict(value), indent=2) + "\n")
