"""The folder of one cell: what determines it, its metrics, its log, its checkpoints, how it ended.

Nothing here needs ray or torch.
"""

import contextlib
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from gems_ray.errors import RecordVersionError, RunFolderError
from gems_ray.experiments.records import CellCheckpoint, CellDescription, CellResult, Report
from gems_ray.files import write_text_atomically
from gems_ray.metrics import STEP
from gems_ray.record import read_record, write_record

FINISHED: Final = "finished"
DIVERGED: Final = "diverged"
PRUNED: Final = "pruned"
FAILED: Final = "failed"
RUNNING, UNFINISHED, PENDING = "running", "unfinished", "pending"
WITH_RESULT = (FINISHED, DIVERGED)  # trained to the end and tested; `diverged`: Q-values far above what rewards can pay
ENDED = (*WITH_RESULT, PRUNED, FAILED)  # `pruned`: a search stopped it early
DESCRIPTION, METRICS, RESULT, LOG = "cell.yaml", "metrics.csv", "result.json", "log.txt"
CHECKPOINT = "checkpoint.json"
TRAINER = "last.safetensors"  # of a checkpoint: where training continues; beside it lies the best policy
FORMER_BEST = "best.safetensors"  # what older versions wrote in place of the policy's own files


@dataclass(frozen=True, slots=True)
class CellFolder:
    """Files of one cell."""

    path: Path

    def checkpoint(self) -> CellCheckpoint | None:
        """Where the cell goes on; None where it has no checkpoint.

        Raises:
            RunFolderError: the file is damaged.
        """
        found = read_record(self.path / CHECKPOINT, CellCheckpoint)
        if found is None and (self.path / TRAINER).exists():  # a run of an older version
            return CellCheckpoint(path=f"../{self.path.parent.name}/{self.path.name}", updates=0)
        return found

    def write_checkpoint(self, checkpoint: CellCheckpoint) -> None:
        """Records where the cell goes on."""
        write_record(self.path / CHECKPOINT, checkpoint)

    def set_damaged_checkpoint_aside(self) -> None:
        """Renames a damaged record of the checkpoint, so that the cell begins anew."""
        set_aside_if_damaged(self.path / CHECKPOINT, self.checkpoint)

    @property
    def log(self) -> Path:
        """What happened to the cell, a line each, with the traceback of an unexpected error."""
        return self.path / LOG

    @property
    def description(self) -> CellDescription:
        """What determines the cell.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        path = self.path / DESCRIPTION
        found = read_record(path, CellDescription)
        if found is None:
            raise RunFolderError(f"{path}: no such file. {CellDescription.advice}")
        return found

    def is_described_as(self, description: CellDescription) -> bool:
        """Whether the cell's file says exactly this; not where it is missing or damaged."""
        try:
            found = read_record(self.path / DESCRIPTION, CellDescription)
        except RunFolderError:
            return False
        # As texts, because 1, 1.0 and true are equal in Python.
        return found is not None and found.model_dump_json() == description.model_dump_json()

    @property
    def status(self) -> str:
        """finished, diverged (finished as well), pruned, failed, unfinished (has begun) or pending."""
        return self.status_by(self.result())

    def status_by(self, result: CellResult | None) -> str:
        """The status, from a result that has been read already."""
        if result is not None:
            return result.status
        return UNFINISHED if (self.path / METRICS).exists() else PENDING

    def result(self) -> CellResult | None:
        """How the cell ended; None while it has not.

        Raises:
            RunFolderError: the file is damaged.
        """
        return read_record(self.path / RESULT, CellResult)

    def write_result(self, result: CellResult) -> None:
        """Records how the cell ended."""
        write_record(self.path / RESULT, result)

    def last_report(self, result: CellResult | None) -> Report:
        """The report of a result that has been read already, or the last one so far; empty before the first."""
        return result.report if result and result.report else next(reversed(self.metrics()), {})

    def set_damaged_result_aside(self) -> None:
        """Renames a damaged result, so that the cell ends again."""
        set_aside_if_damaged(self.path / RESULT, self.result)

    def reopen(self) -> None:
        """Lets a failed cell run again."""
        if self.status == FAILED:
            (self.path / RESULT).unlink()

    def add_log(self, text: str, level: str = "INFO") -> None:
        """Adds to the log; silent where that is impossible: a full disk is told elsewhere."""
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
            file.write(f"{now} {level:7} {text}\n")

    def metrics(self) -> list[Report]:
        """Rows of metrics.csv; a last line that was cut off, and whatever is no row of numbers, is left out."""
        reports: list[Report] = []
        with contextlib.suppress(csv.Error):  # binary
            rows = csv.DictReader(io.StringIO(self._whole_lines()))
            reports.extend(report for row in rows if (report := _read_row(row)) is not None)
        return reports

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Adds a row; the first row's keys are the header, which grows where a later row has more."""
        path, header = self.path / METRICS, self._header()
        if new := [key for key in row if key not in header] if header else []:
            header += new
            self._write_metrics(self.metrics(), header)
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header or list(row), restval="")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({key: value for key, value in row.items() if math.isfinite(value)})

    def keep_metrics_until(self, updates: int) -> None:
        """Drops rows beyond a checkpoint, and a line that was cut off; a file without any row is set aside."""
        path, found = self.path / METRICS, self.metrics()
        rows = [row for row in found if row[STEP] <= updates]
        if rows:
            self._write_metrics(rows, self._header())
        elif not found and self._whole_lines():
            set_aside(path)
        else:
            path.unlink(missing_ok=True)

    def _write_metrics(self, rows: Sequence[Report], header: Sequence[str]) -> None:
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


def _read_row(row: Mapping[Any, Any]) -> Report | None:
    """The finite numbers of a row; None where it is cut off or holds something else."""
    if None in row or None in row.values():  # too long, too short
        return None
    try:
        int(row[STEP])
        numbers = {key: _read_number(text) for key, text in row.items() if text}
        return {key: value for key, value in numbers.items() if math.isfinite(value)}
    except (KeyError, ValueError, OverflowError):  # a whole number of hundreds of digits is no float
        return None


def _read_number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def set_aside(path: Path) -> None:
    """Renames a file that cannot be read, so that it is neither used nor lost."""
    path.replace(path.with_name(f"{path.name}.damaged"))


def set_aside_if_damaged(path: Path, read: Callable[[], object]) -> None:
    """Sets a file aside where it cannot be read.

    Args:
        path: of the file.
        read: reads it.
    Raises:
        RecordVersionError: a later version of the program wrote it.
    """
    try:
        read()
    except RecordVersionError:
        raise
    except RunFolderError:
        set_aside(path)
