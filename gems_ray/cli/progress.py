"""What a run does, on the terminal."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gems_ray import metrics
from gems_ray.cli.console import console, print_line, visible
from gems_ray.execution.listener import RunListener
from gems_ray.experiments.cell_folder import ENDED, FAILED, PENDING
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
from gems_ray.results.numbers import short

# In the live table: cells that have failed, the best trials that have ended, and cells that wait.
SHOWN_FAILED, SHOWN_BEST, SHOWN_WAITING = 8, 3, 3


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
        former = (
            known.report.get(metrics.RETURN_MEAN) if _is_evaluated_again(known.report, report) else known.former_return
        )
        cell = replace(
            known, state=change.state, report=report or known.report, reason=change.reason, former_return=former
        )
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
        table = cell_table(folded(state.cells))
        table.title, table.title_justify = f"{self._minutes():.1f} min: {state.summary()}", "left"
        return table


def folded(cells: Sequence[CellState]) -> list[CellState]:
    """The cells for the live table: those at work, and a line for all others that are alike.

    Cells that have ended become a line per environment, algorithm and state, with the means of their numbers. Failed
    ones, the best trials, and those that come next stay.
    """
    failed = [cell for cell in cells if cell.state == FAILED][-SHOWN_FAILED:]
    trials = [cell for cell in cells if cell.title and cell.state in ENDED and metrics.RETURN_MEAN in cell.report]
    best = sorted(trials, key=lambda cell: -cell.report[metrics.RETURN_MEAN])[:SHOWN_BEST]
    waiting = [cell for cell in cells if cell.state == PENDING]
    at_work = [cell for cell in cells if cell.state not in (*ENDED, PENDING)]
    kept = {cell.name for cell in (*failed, *best)}
    alike: dict[tuple[str, str], list[CellState]] = {}
    for cell in cells:
        if cell.state in ENDED and cell.name not in kept:
            alike.setdefault((cell.name.rsplit("-", 2)[0], cell.state), []).append(cell)
    return [
        *(_together(place, state, group) for (place, state), group in alike.items()),
        *best,
        *failed,
        *at_work,
        *waiting[:SHOWN_WAITING],
    ]


def _together(place: str, state: str, cells: Sequence[CellState]) -> CellState:
    """A line for several cells that have ended in the same state."""
    names = dict.fromkeys(name for cell in cells for name in cell.report)
    report = {name: fmean(cell.report[name] for cell in cells if name in cell.report) for name in names}
    title = f"{place}: {len(cells)} {'cells' if len(cells) > 1 else 'cell'}"
    return CellState(title, state, cells[0].max_timesteps, report, title=title)


def cell_table(cells: Sequence[CellState]) -> Table:
    """One row per cell, for 80 columns: a long name is folded, and a column without any number is left out.

    Where cells have settings of their own, the hash at the end of the names makes place for them.
    """
    table = Table(box=None, pad_edge=False)
    has_settings = any(cell.settings and not cell.title for cell in cells)
    table.add_column("trial" if any(cell.title.startswith("trial") for cell in cells) else "cell", overflow="fold")
    if has_settings:
        table.add_column("settings", overflow="fold")
    table.add_column("state", no_wrap=True)
    columns = {name: [value(cell) for cell in cells] for name, value in NUMBERS.items()}
    shown = {name: values for name, values in columns.items() if any(value is not None for value in values)}
    trends = [_trend(cell) for cell in cells]
    for name in ("updates", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    for index, cell in enumerate(cells):
        share = f"{100 * cell.updates / cell.max_timesteps:.0f}%" if cell.report and cell.max_timesteps else "-"
        numbers = {name: "-" if (value := values[index]) is None else short(value) for name, values in shown.items()}
        if "return" in numbers and any(trends):
            numbers["return"] += f" {trends[index] or ' '}"
        name = cell.title or (cell.name.rpartition("-")[0] if has_settings else cell.name)
        settings = [Text(visible("" if cell.title else cell.settings))] if has_settings else []
        table.add_row(Text(visible(name)), *settings, cell.state, share, *numbers.values())
    return table


def _is_evaluated_again(before: Mapping[str, float], now: Mapping[str, float]) -> bool:
    """Whether a report has another evaluation than the one before it."""
    return metrics.RETURN_MEAN in now and any(
        now.get(name) != before.get(name) for name in (metrics.EVALUATED, metrics.RETURN_MEAN)
    )


def _trend(cell: CellState) -> str:
    """Where the return goes, by more than its standard error: up, down, or neither."""
    now, former = cell.report.get(metrics.RETURN_MEAN), cell.former_return
    if now is None or former is None or cell.state in ENDED:
        return ""
    error = cell.report.get(metrics.RETURN_SE, 0.0)
    return "↑" if now > former + error else "↓" if now < former - error else "→"


def _loss(cell: CellState) -> float | None:
    """The critic's loss, or the first one where there is no critic."""
    losses = {name: value for name, value in cell.report.items() if name.startswith("train/") and "loss" in name}
    return losses.get(metrics.train("critic_loss"), next(iter(losses.values()), None))


def _fqe(cell: CellState) -> float | None:
    value, spread = (cell.report.get(metrics.offline(name)) for name in ("fqe_value", "fqe_spread"))
    return None if value is None or spread is None or math.isnan(value) else value - spread


NUMBERS: dict[str, Callable[[CellState], float | None]] = {
    "loss": _loss,
    "return": lambda cell: cell.report.get(metrics.RETURN_MEAN),
    "best": lambda cell: cell.report.get(metrics.BEST_RETURN),
    "Q": lambda cell: cell.report.get(metrics.Q_POLICY),
    "fqe": _fqe,
}
