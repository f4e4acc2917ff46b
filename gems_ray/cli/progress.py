"""What a run does, on the terminal."""

import math
import time
from collections.abc import Callable, Sequence
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
from gems_ray.experiments.progress import (
    CellProgress,
    CellState,
    RunState,
    cell_titles,
    describe_seconds,
    read_cell,
    read_progress,
)
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
        known = before
        if known is None:  # of a trial that has begun since
            title = cell_titles(self._run).get(change.name, "")
            known = replace(read_cell(self._run.cell(change.name)), title=title)
        report = {key: value for key, value in change.report.items() if isinstance(value, int | float)}
        cell = replace(known, state=change.state, report=report or known.report, reason=change.reason)
        self._cells[change.name] = cell
        if not console.is_terminal and (before is None or before.state != cell.state):
            value = cell.report.get(metrics.RETURN_MEAN)
            result = f"  return {value:.1f}" if value is not None and cell.state in ENDED else ""
            reason = f" ({cell.reason})" if cell.reason else ""
            name = cell.title or cell.name
            print_line(f"{self._minutes():5.1f} min  {name}  {cell.state}{result}{reason}{self._left()}")

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
    """One row per cell, for 80 columns: a long name is folded, and a column without any number is left out."""
    table = Table(box=None, pad_edge=False)
    table.add_column("trial" if any(cell.title for cell in cells) else "cell", overflow="fold")
    table.add_column("state", no_wrap=True)
    columns = {name: [value(cell) for cell in cells] for name, value in NUMBERS.items()}
    shown = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    for name in ("updates", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for index, cell in enumerate(cells):
        share = f"{100 * cell.updates / cell.max_timesteps:.0f}%" if cell.report and cell.max_timesteps else "-"
        numbers = ["-" if (value := values[index]) is None else _short(value) for values in shown.values()]
        table.add_row(Text(visible(cell.title or cell.name)), cell.state, share, *numbers)
    return table


def _loss(cell: CellState) -> float | None:
    """The critic's loss, or the first one where there is no critic."""
    losses = {name: value for name, value in cell.report.items() if name.startswith("train/") and "loss" in name}
    return losses.get(metrics.train("critic_loss"), next(iter(losses.values()), None))


def _fqe(cell: CellState) -> float | None:
    value, spread = (cell.report.get(metrics.offline(name)) for name in ("fqe_value", "fqe_spread"))
    return None if value is None or spread is None or math.isnan(value) else value - spread


def _short(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 10 or value == 0 else f"{value:.2g}"


NUMBERS: dict[str, Callable[[CellState], float | None]] = {
    "loss": _loss,
    "return": lambda cell: cell.report.get(metrics.RETURN_MEAN),
    "best": lambda cell: cell.report.get(metrics.BEST_RETURN),
    "Q": lambda cell: cell.report.get(metrics.Q_POLICY),
    "fqe": _fqe,
}
