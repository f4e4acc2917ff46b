"""The run folder: plain YAML, JSON, CSV and safetensors under relative paths, the record of truth of every run.

    RUN/experiment.yaml              what was asked for; can be run again
    RUN/machine.json                 versions and hardware, where the run began (once environment.json)
    RUN/datasets.json                fingerprints of the datasets and their worlds
    RUN/references/ENVIRONMENT.json  returns of the reference policies on the test users
    RUN/cells/CELL/cell.yaml         everything that determines the cell
    RUN/cells/CELL/metrics.csv       one row per evaluation
    RUN/cells/CELL/log.txt           what happened to it
    RUN/cells/CELL/checkpoint.json   where the cell goes on
    RUN/cells/CELL/result.json       how the cell ended
    RUN/checkpoints/...              checkpoints, unless they are kept elsewhere
    RUN/tracking.json                what marks the run in MLflow and Weights & Biases, where it is written there
    RUN/running.json                 the cells that are being trained, while a run goes on
    RUN/trials/NUMBER.yaml, candidates.json, best.yaml, study.db, study.json  of a search

Nothing here needs ray or torch.
"""

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from gems_ray.config import load_config
from gems_ray.errors import ConfigError, RunFolderError
from gems_ray.experiments.cell_folder import DESCRIPTION, ENDED, CellFolder, set_aside_if_damaged
from gems_ray.experiments.records import (
    CandidateRecord,
    Candidates,
    CellDescription,
    DatasetFacts,
    Datasets,
    References,
    RunningCells,
    StorageFacts,
    TrackingFacts,
    TrialRecord,
)
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.files import write_text_atomically
from gems_ray.machine import MachineReport
from gems_ray.program import program_name
from gems_ray.record import read_record, write_record
from gems_ray.yaml_file import dump_yaml

MACHINE, FORMER_MACHINE = "machine.json", "environment.json"
EXPERIMENT, CELLS, REFERENCES, TRIALS, BEST = "experiment.yaml", "cells", "references", "trials", "best.yaml"
DATASETS, STUDY, CANDIDATES = "datasets.json", "study.json", "candidates.json"
STORAGE, CHECKPOINTS, RUNNING_CELLS, LOCK = "storage.json", "checkpoints", "running.json", ".lock"
TRACKING = "tracking.json"


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Files of one run.

    Args:
        path: the folder.
    """

    path: Path

    @classmethod
    def create(cls, path: Path, experiment: Experiment, machine: MachineReport) -> "RunFolder":
        """Makes the folder of an experiment; the folder of the same experiment is opened as it is.

        Args:
            path: of the folder.
            experiment: what is asked for.
            machine: where the run begins; a run that goes on keeps the report of its beginning.
        Raises:
            RunFolderError: the folder holds another experiment, or files that are not a run's.
        """
        check_free(path, experiment)
        run = cls(path)
        if not (path / EXPERIMENT).exists() or run.experiment() != experiment:  # a search finds its objectives
            write_text_atomically(path / EXPERIMENT, dump_yaml(experiment.as_yaml()))
        if not any((path / name).exists() for name in (MACHINE, FORMER_MACHINE)):
            write_record(path / MACHINE, machine)
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

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second run out of the folder.

        Raises:
            RunFolderError: a run is going on in it.
        """
        lock = FileLock(self.path / LOCK)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            raise RunFolderError(
                f"{self.path}: a run is going on in this folder (`{program_name()} status {self.path}`). "
                "Wait for it, stop it, or choose another --name."
            ) from None
        try:
            yield
        finally:
            lock.release()

    def is_locked(self) -> bool:
        """Whether a run is going on in the folder."""
        return _is_locked(self.path / LOCK)

    def running_cells(self) -> set[str]:
        """Names of the cells that are being trained at this moment."""
        found = read_record(self.path / RUNNING_CELLS, RunningCells) if self.is_locked() else None
        return set(found.cells) if found else set()

    def write_running_cells(self, names: Iterable[str]) -> None:
        """Records the names of the cells that are being trained; hold the lock."""
        write_record(self.path / RUNNING_CELLS, RunningCells(cells=sorted(names)))

    @property
    def storage(self) -> str:
        """Folder or URI below which the checkpoints lie."""
        found = read_record(self.path / STORAGE, StorageFacts)
        return found.uri if found else str(self.path / CHECKPOINTS)

    def check_storage(self, uri: str | None) -> None:
        """Records where the checkpoints are kept; a run that goes on must find them there.

        Args:
            uri: that pyarrow opens; None for the run folder, or for what a run that goes on began with.
        Raises:
            RunFolderError: the run began with another storage.
        """
        known = read_record(self.path / STORAGE, StorageFacts)
        if uri is None or (known and known.uri == uri):
            return
        if known or any((self.path / CELLS).glob("*/checkpoint.json")):
            raise RunFolderError(
                f"{self.path}: began with its checkpoints in {self.storage}, not in {uri}. Leave out --storage, or "
                "choose another --name."
            )
        write_record(self.path / STORAGE, StorageFacts(uri=uri))

    def mark_in_trackers(self) -> str:
        """What tells this run from others of its name in a tracker; made once; hold the lock."""
        found = read_record(self.path / TRACKING, TrackingFacts) or TrackingFacts(run=uuid.uuid4().hex)
        write_record(self.path / TRACKING, found)
        return found.run

    def experiment(self) -> Experiment:
        """What was asked for. Settings are not compared with the algorithms: results can be read without torch.

        Raises:
            RunFolderError: the file is damaged.
        """
        path, content = self.path / EXPERIMENT, b""
        with contextlib.suppress(OSError):
            content = path.read_bytes()
        try:
            return _load_experiment(path, content)
        except ConfigError as error:
            raise RunFolderError(str(error)) from None

    def machine(self) -> MachineReport | None:
        """Versions and hardware, where the run began; None where that was lost."""
        return read_record(self.path / MACHINE, MachineReport) or read_record(self.path / FORMER_MACHINE, MachineReport)

    def add_cells(self, cells: Iterable[Cell]) -> None:
        """Describes cells in their folders; a description that was damaged is written anew."""
        for cell in cells:
            folder, description = self.cell(cell.name), CellDescription.of(cell)
            if not folder.is_described_as(description):
                write_record(folder.path / DESCRIPTION, description)

    def open_cells(self, cells: Sequence[Cell]) -> list[Cell]:
        """Makes cells ready to be trained: described, failed ones open again, damaged results aside.

        Returns:
            those that have not ended.
        """
        self.add_cells(cells)
        for cell in cells:
            folder = self.cell(cell.name)
            folder.set_damaged_result_aside()
            folder.set_damaged_checkpoint_aside()
            folder.reopen()
        return [cell for cell in cells if self.cell(cell.name).status not in ENDED]

    def cell(self, name: str) -> CellFolder:
        """The folder of a cell."""
        return CellFolder(self.path / CELLS / name)

    def cells(self) -> list[CellFolder]:
        """The experiment's own cells that have a folder, in the order of their names.

        Raises:
            RunFolderError: the experiment's file is damaged.
        """
        own = self._own_names()
        return [folder for folder in self.all_cells() if own is None or folder.path.name in own]

    def all_cells(self) -> list[CellFolder]:
        """All cells in the order of their names, those of an experiment that was changed since among them."""
        folders = sorted((self.path / CELLS).glob(f"*/{DESCRIPTION}"))
        return [CellFolder(described.parent) for described in folders]

    def _own_names(self) -> set[str] | None:
        """Names of the cells of a grid, or of all trials and candidates; None where a damaged file leaves that open."""
        if not (self.path / EXPERIMENT).exists():
            return None
        experiment = self.experiment()
        if not experiment.search:
            return {cell.name for cell in experiment.cells()}
        try:
            return self.search_cells()
        except RunFolderError:
            return None

    def find_cell(self, text: str) -> CellFolder:
        """The cell whose name is, or alone contains, a text.

        Raises:
            RunFolderError: none does, or several.
        """
        cells = self.all_cells()
        found = [cell for cell in cells if cell.path.name == text] or [c for c in cells if text in c.path.name]
        if len(found) != 1:
            names = ", ".join(cell.path.name for cell in (found or cells))
            what = "no cell's name contains" if not found else "several cells' names contain"
            raise RunFolderError(f"{self.path}: {what} `{text}`. Cells: {names or 'none'}.")
        return found[0]

    def datasets(self) -> dict[str, DatasetFacts]:
        """The dataset of every environment, as the run met it; empty before it began."""
        record = read_record(self.path / DATASETS, Datasets)
        return record.by_environment if record else {}

    def check_datasets(self, found: Mapping[str, DatasetFacts]) -> None:
        """Records the datasets of a run; a run that goes on must meet the same ones.

        Args:
            found: facts by environment.
        Raises:
            RunFolderError: a dataset was changed since the run began.
        """
        known = self.datasets()
        for environment, facts in found.items():
            before = known.get(environment, facts)
            if before.fingerprint != facts.fingerprint:
                raise RunFolderError(
                    f"{self.path}: began with dataset {before.fingerprint} of {environment}, but {facts.file} is "
                    f"now {facts.fingerprint}. Put the old file back, or choose another --name."
                )
        write_record(self.path / DATASETS, Datasets.model_validate({**found, **known}))

    def references(self, environment: str) -> References | None:
        """Evaluations of the reference policies on the test users; None where there is no world."""
        return read_record(self.path / REFERENCES / f"{environment}.json", References)

    def write_references(self, environment: str, references: References) -> None:
        """Records the evaluations of the reference policies."""
        write_record(self.path / REFERENCES / f"{environment}.json", references)

    def trials(self) -> dict[int, TrialRecord]:
        """The trials of a search, by number."""
        files = [file for file in (self.path / TRIALS).glob("*.yaml") if file.stem.isdigit()]
        records = {int(file.stem): read_record(file, TrialRecord) for file in files}
        return {number: record for number, record in sorted(records.items()) if record is not None}

    def write_trial(self, number: int, record: TrialRecord) -> None:
        """Records a trial of a search."""
        write_record(self.path / TRIALS / f"{number:04d}.yaml", record)

    def candidates(self) -> list[CandidateRecord] | None:
        """What a search trains again on fresh seeds; None until all of its trials have ended."""
        found = read_record(self.path / CANDIDATES, Candidates)
        return None if found is None else found.candidates

    def search_cells(self) -> set[str]:
        """Names of the cells of all trials and candidates of a search."""
        of_trials = [trial.cells for trial in self.trials().values()]
        of_candidates = [candidate.cells for candidate in self.candidates() or []]
        return {name for names in (*of_trials, *of_candidates) for name in names}

    def write_candidates(self, candidates: Sequence[CandidateRecord]) -> None:
        """Records what a search trains again."""
        write_record(self.path / CANDIDATES, Candidates(candidates=list(candidates)))

    def set_damaged_search_records_aside(self) -> None:
        """Renames damaged records; the study has what was in them, and the trials say what the candidates are."""
        for file in (self.path / TRIALS).glob("*.yaml"):
            set_aside_if_damaged(file, partial(read_record, file, TrialRecord))
        set_aside_if_damaged(self.path / CANDIDATES, self.candidates)


@lru_cache(maxsize=8)
def _load_experiment(path: Path, content: bytes) -> Experiment:
    """The experiment of a file; a file that has the same content again is not parsed again, which takes long.

    Args:
        path: of the file.
        content: what is in it now.
    """
    return load_config(path, Experiment)


def check_free(path: Path, experiment: Experiment) -> None:
    """Makes sure that a folder can be, or already is, the run folder of an experiment.

    Raises:
        RunFolderError: it holds another experiment, cells of another one, or files that are not a run's.
    """
    if (path / EXPERIMENT).exists():
        run = RunFolder(path)
        if differing := _differing(_resolved(run.experiment(), experiment).as_yaml(), experiment.as_yaml()):
            raise RunFolderError(
                f"{path}: holds a run of another experiment: {differing} not as in its {EXPERIMENT}. Choose another "
                f"--name; `{program_name()} resume {path}` goes on with the run that is there."
            )
        if not experiment.search:  # a search compares the records of its trials
            _check_own_cells(run, experiment)
    elif path.exists() and any(not file.name.startswith(".") for file in path.iterdir()):
        raise RunFolderError(f"{path}: holds files that are not a run's. Choose another --name.")


def _check_own_cells(run: RunFolder, experiment: Experiment) -> None:
    """An experiment.yaml that was changed by hand would leave two generations of cells in one folder."""
    own = {cell.name: cell for cell in experiment.cells()}
    foreign = [folder for folder in run.all_cells() if folder.path.name not in own]
    if not foreign:
        return
    try:
        found = foreign[0].description.model_dump()
    except RunFolderError:
        found = {}
    place = tuple(found.get(key) for key in ("environment", "algorithm", "seed"))
    alike = [cell for cell in own.values() if (cell.environment, cell.algorithm, cell.seed) == place]
    differing = (
        _differing(found, CellDescription.of(alike[0]).model_dump()) if alike else "environment, algorithm or seed"
    )
    more = f" and {len(foreign) - 1} more cells do" if len(foreign) > 1 else " does"
    raise RunFolderError(
        f"{run.path / EXPERIMENT}: {foreign[0].path.name}{more} not belong to this experiment: "
        f"{differing or 'settings'} changed. Put the old values back, or run the file under another --name; "
        "nothing in the folder was touched."
    )


def _resolved(known: Experiment, experiment: Experiment) -> Experiment:
    """A search that leaves its objectives open has those that it was given when it began."""
    if not known.search or not experiment.search or known.search.objectives:
        return known
    search = known.search.model_copy(update={"objectives": experiment.search.objectives})
    holdout = known.evaluation.holdout or experiment.evaluation.holdout
    evaluation = known.evaluation.model_copy(update={"holdout": holdout})
    return known.model_copy(update={"search": search, "evaluation": evaluation})


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    return ", ".join(sorted(key for key in {*one, *other} if one.get(key) != other.get(key)))


def _is_locked(path: Path) -> bool:
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
