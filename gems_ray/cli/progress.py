"""The grid's progress: a live table on a terminal, a line per change of state elsewhere."""

import time
from types import TracebackType

from rich.live import Live
from rich.table import Table

from gems_ray import metrics
from gems_ray.cli.console import console, say
from gems_ray.experiments.spec import Experiment
from gems_ray.tune.run import CellProgress


class GridProgress:
    """Shows every cell of an experiment; call it with each change of a cell.

    Args:
        experiment: the grid.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._total = experiment.training.max_timesteps
        self._cells = {cell.name: cell for cell in experiment.cells()}
        self._seen: dict[str, CellProgress] = {}
        self._start = time.monotonic()
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> "GridProgress":
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, progress: CellProgress) -> None:
        """Takes note of a change."""
        before = self._seen.get(progress.name)
        if not progress.report and before:
            progress = CellProgress(progress.name, progress.state, before.report)
        self._seen[progress.name] = progress
        if not console.is_terminal and (before is None or before.state != progress.state):
            value = progress.report.get(metrics.RETURN_MEAN)
            result = f"  return {value:.1f}" if value is not None else ""
            say(f"{self._minutes():5.1f} min  {progress.name}  {progress.state}{result}")

    def _minutes(self) -> float:
        return (time.monotonic() - self._start) / 60

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, title=f"{self._minutes():.1f} min", title_justify="left")
        for column in ("environment", "algorithm", "seed", "state"):
            table.add_column(column, no_wrap=True)
        for column in ("updates", "return", "best", "Q"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, cell in self._cells.items():
            progress = self._seen.get(name) or CellProgress(name, "waiting", {})
            report = progress.report
            share = f"{100 * report[metrics.STEP] / self._total:.0f}%" if metrics.STEP in report else "-"
            numbers = [
                f"{report[key]:.1f}" if key in report else "-"
                for key in (metrics.RETURN_MEAN, metrics.BEST_RETURN, metrics.Q_POLICY)
            ]
            table.add_row(cell.environment, cell.algorithm, str(cell.seed), progress.state, share, *numbers)
        return table
