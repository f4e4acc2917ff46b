"""The run folder: plain YAML, JSON, CSV and safetensors under relative paths, the record of truth of every run.

    RUN/experiment.yaml            what was asked for; can be run again
    RUN/environment.json           versions and hardware
    RUN/references/ENVIRONMENT.json  returns of the reference policies on the test users
    RUN/cells/CELL/cell.yaml       everything that determines the cell
    RUN/cells/CELL/metrics.csv     one row per evaluation
    RUN/cells/CELL/last.safetensors, best.safetensors  checkpoints
    RUN/cells/CELL/result.json     how the cell ended

Nothing here needs ray or torch.
"""

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gems_ray.config import dump_yaml, plain, read_yaml
from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.experiments.spec import Experiment
from gems_ray.files import write_text_atomically

EXPERIMENT, CELLS, REFERENCES = "experiment.yaml", "cells", "references"
FINISHED, DIVERGED, FAILED, UNFINISHED, PENDING = "finished", "diverged", "failed", "unfinished", "pending"
WITH_RESULT = (FINISHED, DIVERGED)  # trained to the end and tested; `diverged`: Q-values left what rewards can pay


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
    def description(self) -> dict[str, Any]:
        """What determines the cell."""
        try:
            return plain(read_yaml(self.path / "cell.yaml").data)
        except ConfigError as error:
            raise RunFolderError(str(error)) from None

    @property
    def status(self) -> str:
        """finished, diverged (finished as well), failed, unfinished (has begun) or pending."""
        result = self.result()
        if result is not None:
            return str(result["status"])
        return UNFINISHED if (self.path / "metrics.csv").exists() else PENDING

    def result(self) -> dict[str, Any] | None:
        """How the cell ended; None while it has not."""
        return _read_json(self.path / "result.json")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Records how the cell ended."""
        write_text_atomically(self.path / "result.json", json.dumps(result, indent=2) + "\n")

    def forget_failure(self) -> None:
        """Lets a failed cell run again."""
        if self.status == FAILED:
            (self.path / "result.json").unlink()

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv; a last line that was cut off is left out."""
        try:
            text = (self.path / "metrics.csv").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole)))

    def append_metrics(self, row: Mapping[str, float | int]) -> None:
        """Adds a row; the first row's keys are the header."""
        path = self.path / "metrics.csv"
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow({key: "" if value != value else value for key, value in row.items()})

    def keep_metrics(self, key: str, largest: int) -> None:
        """Drops rows beyond a checkpoint, and a line that was cut off."""
        rows = [row for row in self.metrics() if int(row[key]) <= largest]
        path = self.path / "metrics.csv"
        if not rows:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text_atomically(path, text.getvalue())


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Files of one run.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, experiment: Experiment, environment: Mapping[str, Any]) -> "RunFolder":
        """Makes the folder of an experiment; the folder of the same experiment is opened as it is.

        Raises:
            RunFolderError: the folder holds another experiment, or files that are not a run's.
        """
        check_free(path, experiment)
        run = cls(path)
        write_text_atomically(path / EXPERIMENT, dump_yaml(experiment.model_dump(mode="json")))
        write_text_atomically(path / "environment.json", json.dumps(dict(environment), indent=2) + "\n")
        for cell in experiment.cells():
            folder = run.cell(cell.name)
            if not (folder.path / "cell.yaml").exists():
                write_text_atomically(folder.path / "cell.yaml", dump_yaml(cell.describe()))
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Opens an existing run.

        Raises:
            RunFolderError: there is none.
        """
        if not (path / EXPERIMENT).is_file():
            raise RunFolderError(
                f"{path}: not a run folder (no {EXPERIMENT}). Runs are in runs/ unless you chose --storage."
            )
        return cls(path)

    def cell(self, name: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.path / CELLS / name)

    def cells(self) -> list[CellFolder]:
        """All cells in the order of their names."""
        folders = sorted((self.path / CELLS).glob("*/cell.yaml"))
        return [CellFolder(described.parent) for described in folders]

    def references(self, environment: str) -> dict[str, dict[str, float]] | None:
        """Evaluations of the reference policies on the test users; None where there is no world."""
        return _read_json(self.path / REFERENCES / f"{environment}.json")

    def write_references(self, environment: str, rows: Mapping[str, Mapping[str, float]]) -> None:
        """Records the evaluations of the reference policies."""
        text = json.dumps({name: dict(row) for name, row in rows.items()}, indent=2)
        write_text_atomically(self.path / REFERENCES / f"{environment}.json", text + "\n")


def check_free(path: Path, experiment: Experiment) -> None:
    """Makes sure that a folder can be, or already is, the run folder of an experiment.

    Raises:
        RunFolderError: it holds another experiment, or files that are not a run's.
    """
    described = path / EXPERIMENT
    if described.exists():
        if described.read_text(encoding="utf-8") != dump_yaml(experiment.model_dump(mode="json")):
            raise RunFolderError(
                f"{path}: holds a run of another experiment. Choose another --name, or remove the folder."
            )
    elif path.exists() and any(path.iterdir()):
        raise RunFolderError(f"{path}: holds files that are not a run's. Choose another --name.")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise RunFolderError(f"{path}: cannot be read ({error}). Remove it to repeat that part.") from None
