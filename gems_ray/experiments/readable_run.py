"""Run folders of which something is damaged: what can be read is read, and every gap is named."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from gems_ray.errors import RunFolderError
from gems_ray.experiments.cell_folder import METRICS, CellFolder
from gems_ray.experiments.records import (
    CandidateRecord,
    CellDescription,
    CellResult,
    DatasetFacts,
    References,
    Report,
    TrialRecord,
)
from gems_ray.experiments.run_folder import CELLS, EXPERIMENT, TRIALS, RunFolder
from gems_ray.experiments.spec import Experiment
from gems_ray.machine import MachineReport
from gems_ray.record import read_record

Content = TypeVar("Content")
Default = TypeVar("Default")


@dataclass(frozen=True, slots=True)
class Gaps:
    """What could not be read, a line each, in the order in which it was met."""

    lines: dict[str, None] = field(default_factory=dict)

    def read(self, read: Callable[[], Content], otherwise: Default) -> Content | Default:
        """What a function reads; where a file is damaged, something else, and the gap is kept."""
        try:
            return read()
        except (RunFolderError, OSError) as error:
            self.lines.setdefault(" ".join(str(error).split()))
            return otherwise


@dataclass(frozen=True, slots=True)
class ReadableCell(CellFolder):
    """A cell whose result counts as missing where it is damaged.

    Args:
        path: its folder.
        gaps: of the run.
        known: its description; None where it is missing or damaged.
    """

    gaps: Gaps
    known: CellDescription | None

    @property
    def description(self) -> CellDescription:
        """What determines the cell.

        Raises:
            RunFolderError: the file is missing or damaged.
        """
        return self.known or CellFolder(self.path).description

    def result(self) -> CellResult | None:
        """How the cell ended; None while it has not, and where the file is damaged."""
        return self.gaps.read(CellFolder(self.path).result, None)

    def metrics(self) -> list[Report]:
        """The reports that can be read."""
        reports = CellFolder.metrics(self)
        if not reports and (lines := self._whole_lines().count("\n")) > 1:
            self.gaps.lines.setdefault(f"{self.path / METRICS}: none of its {lines - 1} reports can be read.")
        return reports


@dataclass(frozen=True, slots=True)
class ReadableRun(RunFolder):
    """A run folder of which damaged files are left out; `gaps` names them once they were asked for.

    Only its experiment must be whole: without it, nobody knows what the run was. Experiment and cells are read once:
    who wants to see what has changed since opens the run anew.

    Args:
        path: the folder.
        gaps: what could not be read so far.
        known: experiment and cells, once they were read.
    """

    gaps: Gaps = field(default_factory=Gaps)
    known: dict[str | Path, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def open(cls, path: Path) -> "ReadableRun":
        """Opens an existing run.

        Raises:
            RunFolderError: there is none.
        """
        return cls(RunFolder.open(path).path)

    def experiment(self) -> Experiment:
        """What was asked for.

        Raises:
            RunFolderError: the file is damaged.
        """
        if EXPERIMENT not in self.known:
            self.known[EXPERIMENT] = RunFolder(self.path).experiment()
        return self.known[EXPERIMENT]

    def cell(self, name: str) -> ReadableCell:
        """The folder of a cell."""
        path = self.path / CELLS / name
        if path not in self.known:
            description = self.gaps.read(lambda: CellFolder(path).description, None)
            self.known[path] = ReadableCell(path, self.gaps, description)
        return self.known[path]

    def cells(self) -> list[CellFolder]:
        """The experiment's own cells whose description can be read, in the order of their names."""
        if CELLS not in self.known:
            found = [self.cell(folder.path.name) for folder in RunFolder.cells(self)]
            self.known[CELLS] = [folder for folder in found if folder.known is not None]
        return list(self.known[CELLS])

    def machine(self) -> MachineReport | None:
        """Versions and hardware; None where that was lost."""
        return self.gaps.read(RunFolder(self.path).machine, None)

    def references(self, environment: str) -> References | None:
        """Evaluations of the reference policies; None where there are none, or damaged ones."""
        return self.gaps.read(partial(RunFolder(self.path).references, environment), None)

    def datasets(self) -> dict[str, DatasetFacts]:
        """The dataset of every environment that is known."""
        return self.gaps.read(RunFolder(self.path).datasets, {})

    def trials(self) -> dict[int, TrialRecord]:
        """The trials of a search that can be read, by number."""
        files = sorted(file for file in (self.path / TRIALS).glob("*.yaml") if file.stem.isdigit())
        read = {int(file.stem): self.gaps.read(partial(read_record, file, TrialRecord), None) for file in files}
        return {number: record for number, record in read.items() if record is not None}

    def candidates(self) -> list[CandidateRecord] | None:
        """What a search trained again; None where that is not known."""
        return self.gaps.read(RunFolder(self.path).candidates, None)

    def running_cells(self) -> set[str]:
        """Names of the cells that are being trained at this moment."""
        return self.gaps.read(RunFolder(self.path).running_cells, set())
