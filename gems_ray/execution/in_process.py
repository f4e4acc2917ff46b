"""Cells trained in this process, one after the other, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from gems_ray.errors import ConfigError, DeviceError, GemsRayError
from gems_ray.execution.cell_training import open_training
from gems_ray.execution.interruption import RunInterrupted, first_signal
from gems_ray.execution.recorder import CellRecorder, describe_report
from gems_ray.execution.run import OpenRun
from gems_ray.execution.sources import Source
from gems_ray.execution.storage import CheckpointStorage, attempt_name
from gems_ray.experiments.cell_folder import RUNNING, UNFINISHED
from gems_ray.experiments.progress import CellProgress
from gems_ray.experiments.records import Report, evaluation_row
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.experiments.spec import Cell, Experiment, TrackingSpec
from gems_ray.learning.trainer import resolve_device
from gems_ray.metrics import STEP

if TYPE_CHECKING:
    from gems_ray.experiments.study import StudyPlace


class InProcess:
    """Trains one cell after the other; Ctrl-C or SIGTERM stops between two updates, with the cell saved."""

    def check(self, experiment: Experiment) -> None:
        """Makes sure that the device is there, and that nothing is asked for that needs Ray."""
        resolve_device(experiment.training.device)
        if experiment.search:
            raise ConfigError("search: its trials are run by Ray, not in this process. Leave `search` out, or use Ray.")
        if experiment.resources.cells_per_pack > 1:
            raise ConfigError(
                "resources.pack: cells are packed by runs under Ray, not in this process. Leave it out, or use Ray; a "
                "script has gems_ray.Pack."
            )
        if experiment.tracking != TrackingSpec():
            raise ConfigError("tracking: is written by runs under Ray, not in this process. Leave it out, or use Ray.")
        if experiment.resources.mps:
            raise ConfigError("resources.mps: is started by runs under Ray, whose cells share a GPU. Leave it out.")

    def train_cells(self, run: OpenRun, cells: Sequence[Cell]) -> None:
        """Trains the cells; one that fails is recorded as failed, and the next one begins."""
        run.listener.on_training(run.folder)
        with first_signal() as received, _threads(int(run.experiment.resources.cpu)):
            for cell in cells:
                if len(cells) > 1:
                    run.listener.on_line(cell.name)
                run.folder.write_running_cells([cell.name])
                _train_cell(run, cell, lambda: received() is not None)
                run.folder.write_running_cells([])
                if (number := received()) is not None:
                    raise RunInterrupted(number)

    def train_trials(self, run: OpenRun, study: "StudyPlace") -> None:
        """Refused, as by `check`."""
        self.check(run.experiment)

    def close(self) -> None:
        """Nothing was started."""


class LocalCell:
    """A cell that this process trains and records.

    Args:
        run: folder of the run.
        cell: one of its cells, which has a folder.
        source: dataset and world.
    """

    def __init__(self, run: RunFolder, cell: Cell, source: Source) -> None:
        self.folder = run.cell(cell.name)
        self.recorder = CellRecorder(self.folder, source.fingerprints)
        self._storage, self._place = CheckpointStorage(run.storage), f"{attempt_name()}/{cell.name}"
        checkpoint = self.recorder.checkpoint
        with self._storage.fetched(checkpoint) if checkpoint else nullcontext() as fetched:
            description = self.folder.description
            self.training = open_training(description, source.dataset, source.world, fetched, self.folder.add_log)
        if self.training.trainer.reported >= 0:
            self.recorder.hear(self.training.report())  # its row may have been lost

    def advance(self, stop: Callable[[], bool] = lambda: False) -> Report | None:
        """Trains up to the next evaluation and records it; after the last one, records the result.

        Args:
            stop: asked before every update; true returns early, between two updates.
        Returns:
            what the evaluation measured; None when stopped before it.
        """
        if not self.training.advance(stop):
            return None
        report = self.training.report()
        self.recorder.hear(report)
        self.save()
        if self.training.ended:
            self.recorder.end(report)
        return evaluation_row(report)

    def save(self) -> None:
        """Writes and records the checkpoint at which training continues."""
        path = f"{self._place}/{self.training.trainer.updates}"
        with self._storage.written(path) as folder:
            self.training.save(folder)
        before = self.recorder.checkpointed(path, max(0, self.training.trainer.reported))
        if before is not None and before.path != path:
            self._storage.remove(before.path)


def _train_cell(run: OpenRun, cell: Cell, stop: Callable[[], bool]) -> None:
    """Trains one cell to its end, or until `stop`."""
    folder = run.folder.cell(cell.name)
    report: Report = {}

    def changed(state: str, reason: str = "") -> None:
        run.listener.on_cell(CellProgress(cell.name, state, report, reason))

    try:
        try:
            local = LocalCell(run.folder, cell, run.sources[cell.environment])
        except torch.OutOfMemoryError as error:  # others have the GPU's memory now: nothing is wrong with the cell
            folder.add_log(f"set back: {error}", "WARNING")
            changed(UNFINISHED, next(iter(str(error).splitlines()), ""))
            return
        if updates := local.training.trainer.updates:
            run.listener.on_line(f"Continuing after {updates:,} updates.")
        changed(RUNNING)
        while not local.training.ended and not stop():
            if measured := local.advance(stop):
                report = measured
                run.listener.on_line(describe_report(report, local.recorder.max_timesteps))
                changed(RUNNING)
        if local.training.ended:
            changed(folder.status)
        else:
            local.save()
            run.listener.on_line(f"Interrupted; saved after {local.training.trainer.updates:,} updates.")
            changed(UNFINISHED)
    except torch.AcceleratorError as error:
        raise DeviceError(
            f"{cell.name}: the GPU has failed in this process ({next(iter(str(error).splitlines()), '')}). Everything "
            "up to the last report is saved: the same command goes on."
        ) from None
    except (GemsRayError, torch.OutOfMemoryError) as error:
        CellRecorder(folder, run.sources[cell.environment].fingerprints).fail(str(error), int(report.get(STEP, 0)))
        changed(folder.status, str(error))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """As many threads of torch as a cell has CPUs, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
