"""What the commands print: lines, progress of a collection, the result table."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)


def say(line: str) -> None:
    """Prints a line as it is."""
    console.print(line, markup=False)


@contextmanager
def episode_progress(episodes: int) -> Iterator[Callable[[int], None]]:
    """A bar that appears with the first collected episodes; yields the function that advances it."""
    columns = (TextColumn("  episodes"), BarColumn(30), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: list[TaskID] = []

        def advance(count: int) -> None:
            if not tasks or progress.finished:
                tasks.append(progress.add_task("", total=episodes))
            progress.advance(tasks[-1], count)

        yield advance
