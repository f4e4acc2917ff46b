"""`run_tune.py watch`: curves and cells of a run in the terminal while it goes on, without Ray."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from gems_ray.experiments.progress import RunState
    from gems_ray.experiments.readable_run import ReadableRun
    from gems_ray.results.results import Results

SECONDS = 2.0  # between two looks
SHARE = 5  # a folder that takes long to read is read so much less often
CURVE_ROWS, ENVIRONMENTS = 8, 2  # of the plots


def watch(run: Annotated[Path, typer.Argument(help="Run folder.")]) -> None:
    """Show learning curves and cells of a run until it ends or Ctrl-C. Needs no Ray."""
    from rich.live import Live

    from gems_ray.cli.console import console, print_line
    from gems_ray.experiments.progress import read_progress
    from gems_ray.experiments.readable_run import ReadableRun

    def look() -> "tuple[Group, RunState, float]":
        begin = time.monotonic()
        folder = ReadableRun.open(run)
        state = read_progress(folder)
        return _screen(folder, state), state, time.monotonic() - begin

    shown, state, _ = look()
    if not console.is_terminal or not state.running:
        console.print(shown)
    else:
        with Live(shown, console=console, screen=True, auto_refresh=False) as live:
            try:
                while state.running:
                    shown, state, seconds = look()
                    live.update(shown, refresh=True)
                    time.sleep(max(SECONDS, SHARE * seconds))
            except KeyboardInterrupt:
                pass
        console.print(look()[0])
    if state.stopped:
        print_line("No process runs it: `status` tells how to continue.")


def _screen(folder: "ReadableRun", state: "RunState") -> "Group":
    """What fits on the screen: a line of numbers, the curves, the cells that are of interest."""
    from rich.console import Group
    from rich.text import Text

    from gems_ray.cli.console import console, visible
    from gems_ray.cli.progress import cell_table
    from gems_ray.experiments.cell_folder import FAILED, RUNNING
    from gems_ray.results.results import Results

    results = Results([folder])
    curves = _curves(results)
    room = max(5, console.height - len(curves) // 2 * (CURVE_ROWS + 3) - 6)
    order = sorted(state.cells, key=lambda cell: (cell.state != RUNNING, cell.state != FAILED))
    parts: list[RenderableType] = [Text(f"{visible(str(folder.path))}: {visible(state.summary())}"), *curves]
    parts.append(cell_table(order[:room]))
    if len(order) > room:
        parts.append(Text(f"{len(order) - room:,} more cells: `status` lists them all."))
    parts += [Text(visible(f"Left out: {gap}")) for gap in results.gaps[:3]]
    return Group(*parts)


def _curves(results: "Results") -> "list[RenderableType]":
    """A small plot of the returns for each environment, at most two."""
    from rich.text import Text

    from gems_ray.cli.console import console, visible
    from gems_ray.cli.terminal_plot import line_plot
    from gems_ray.metrics import RETURN_MEAN, STEP
    from gems_ray.results.curve_means import mean_curves

    curves = mean_curves(results.group_curves(RETURN_MEAN), RETURN_MEAN)
    drawn: list[RenderableType] = []
    for environment, here in list(curves.groupby("environment", sort=True))[:ENVIRONMENTS]:
        lines = {
            visible(str(group)): (curve[STEP].tolist(), curve["mean"].tolist())
            for group, curve in here.groupby("group", sort=True)
        }
        drawn.append(Text(f"{visible(str(environment))}: return of the validation users, mean over seeds"))
        drawn.append(line_plot(lines, min(console.width, 90), CURVE_ROWS))
    return drawn
