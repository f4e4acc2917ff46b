"""Cells trained in this process, one after the other, without Ray."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import torch

from gems_ray.errors import ConfigError, GemsRayError
from gems_ray.execution.cell_run import CellRun, describe_report
from gems_ray.execution.interruption import RunInterrupted, first_signal
from gems_ray.execution.run import OpenRun
from gems_ray.experiments.cell_folder import RUNNING, UNFINISHED
from gems_ray.experiments.progress import CellProgress
from gems_ray.experiments.spec import Cell, Experiment
from gems_ray.learning.trainer import resolve_device

if TYPE_CHECKING:
    from gems_ray.experiments.study import StudyPlace


class InProcess:
    """Trains one cell after the other; Ctrl-C or SIGTERM stops between two updates, with the cell saved."""

    def check(self, experiment: Experiment) -> None:
        """Makes sure that the device is there, and that there is nothing to search."""
        resolve_device(experiment.training.device)
        if experiment.search:
            raise ConfigError("search: its trials are run by Ray, not in this process. Leave `search` out, or use Ray.")

    def train_cells(self, run: OpenRun, cells: Sequence[Cell]) -> None:
        """Trains the cells; one that fails is recorded as failed, and the next one begins."""
        run.listener.on_training(run.folder)
        with first_signal() as received, _threads(int(run.experiment.resources.cpu)):
            for cell in cells:
                if len(cells) > 1:
                    run.listener.on_line(cell.name)
                self._train_cell(run, cell, lambda: received() is not None)
                if (number := received()) is not None:
                    raise RunInterrupted(number)

    def train_trials(self, run: OpenRun, study: "StudyPlace") -> None:
        """Refused, as by `check`."""
        self.check(run.experiment)

    def close(self) -> None:
        """Nothing was started."""

    def _train_cell(self, run: OpenRun, cell: Cell, stop: Callable[[], bool]) -> None:
        source, folder = run.sources[cell.environment], run.folder.cell(cell.name)

        def changed(state: str, reason: str = "") -> None:
            run.listener.on_cell(CellProgress(cell.name, state, cell_run.trainer.last_report, reason))

        with closing(CellRun(folder, source.dataset, source.world, wait_s=1)) as cell_run:
            trainer = cell_run.trainer
            if trainer.updates:
                run.listener.on_line(f"Continuing after {trainer.updates:,} updates.")
            changed(RUNNING)
            try:
                while not cell_run.finished and not stop():
                    if report := cell_run.advance(stop):
                        run.listener.on_line(describe_report(report, cell_run.max_timesteps))
                        changed(RUNNING)
            except (GemsRayError, torch.OutOfMemoryError) as error:
                cell_run.fail(str(error))
                changed(folder.status, str(error))
                return
            if cell_run.finished:
                changed(folder.status)
            else:
                cell_run.save()
                run.listener.on_line(f"Interrupted; saved after {trainer.updates:,} updates.")
                changed(UNFINISHED)


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """As many threads of torch as a cell has CPUs, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, number))
    try:
        yield
    finally:
        torch.set_num_threads(before)
