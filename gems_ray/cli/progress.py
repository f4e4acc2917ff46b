"""What a run does, on the terminal."""

import time
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gems_ray import metrics
from gems_ray.cli.console import console, print_line, visible
from gems_ray.execution.listener import RunListener
from gems_ray.experiments.cell_folder import ENDED
from gems_ray.experiments.progress import CellProgress, CellState, RunState, describe_seconds, read_cell, read_progress
from gems_ray.experiments.run_folder import RunFolder

SHOWN_ENDED = 12  # cells that have ended, in the live table


class ConsoleListener(RunListener):
    """Prints lines, and shows a bar while episodes are collected; to be used in a `with` block."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def on_line(self, line: str) -> None:
        """Prints it."""
        self._end_bar()
        print_line(line)

    def on_episodes(self, collected: int, planned: int) -> None:
        """Moves the bar, which appears with the first episodes."""
        if self._bar is None:
            columns = (TextColumn("  episodes"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
            self._bar.add_task("", total=planned)
            self._bar.start()
        self._bar.advance(self._bar.task_ids[0], collected)
        if self._bar.finished:
            self._end_bar()

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class CellsListener(ConsoleListener):
    """Shows the cells too: a live table on a terminal, a line per change of state elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._run: RunFolder | None = None
        self._cells: dict[str, CellState] = {}
        self._planned = 0
        self._start = time.monotonic()
        self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._live.stop()

    def on_training(self, run: RunFolder) -> None:
        """Shows the table."""
        self._end_bar()
        self._run = run
        self._start = time.monotonic()
        state = read_progress(run)
        self._planned = state.planned
        self._cells = {cell.name: cell for cell in state.cells}
        if console.is_terminal:
            self._live.start()

    def on_cell(self, change: CellProgress) -> None:
        """Shows the change."""
        assert self._run is not None
        before = self._cells.get(change.name)
        known = before or read_cell(self._run.cell(change.name))
        report = {key: value for key, value in change.report.items() if isinstance(value, int | float)}
        cell = replace(known, state=change.state, report=report or known.report, reason=change.reason)
        self._cells[change.name] = cell
        if not console.is_terminal and (before is None or before.state != cell.state):
            value = cell.report.get(metrics.RETURN_MEAN)
            result = f"  return {value:.1f}" if value is not None and cell.state in ENDED else ""
            reason = f" ({cell.reason})" if cell.reason else ""
            print_line(f"{self._minutes():5.1f} min  {cell.name}  {cell.state}{result}{reason}{self._left()}")

    def _left(self) -> str:
        state = RunState(list(self._cells.values()), True, self._planned)
        ended = sum(cell.state in ENDED for cell in state.cells)
        seconds = state.remaining_seconds()
        left = f", about {describe_seconds(seconds)} left" if seconds else ""
        return f"  [{ended}/{max(self._planned, len(state.cells))}{left}]"

    def _minutes(self) -> float:
        return (time.monotonic() - self._start) / 60

    def _table(self) -> Table:
        state = RunState(list(self._cells.values()), True, self._planned)
        ended = [cell for cell in state.cells if cell.state in ENDED]
        hidden = {cell.name for cell in ended[:-SHOWN_ENDED]}
        table = cell_table([cell for cell in state.cells if cell.name not in hidden])
        table.title, table.title_justify = f"{self._minutes():.1f} min: {state.summary()}", "left"
        return table


def cell_table(cells: Sequence[CellState]) -> Table:
    """One row per cell, for 80 columns: a long name is folded, numbers are whole."""
    table = Table(box=None, pad_edge=False)
    table.add_column("cell", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in ("updates", "return", "best", "Q"):
        table.add_column(column, justify="right", no_wrap=True)
    for cell in cells:
        numbers = [
            f"{cell.report[key]:.1f}" if key in cell.report else "-"
            for key in (metrics.RETURN_MEAN, metrics.BEST_RETURN, metrics.Q_POLICY)
        ]
        share = f"{100 * cell.updates / cell.max_timesteps:.0f}%" if cell.report and cell.max_timesteps else "-"
        table.add_row(Text(visible(cell.name)), cell.state, share, *numbers)
    return table
