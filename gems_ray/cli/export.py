"""`run_tune.py export`: tables of runs, without ray or torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gems_ray.errors import ConfigError
from gems_ray.results.format_names import STANDARD, Format
from gems_ray.results.text import visible

if TYPE_CHECKING:
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.results.comparison import Comparison


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN...", show_default=False)],
    output: Annotated[
        Path | None, typer.Option(help="Folder of the tables; several runs need one [default: the run folder].")
    ] = None,
    formats: Annotated[
        list[Format] | None,
        typer.Option("--format", help="Once for each format [default: csv, markdown].", show_default=False),
    ] = None,
) -> None:
    """Write cells, learning curves, results and comparison of runs as tables, and print the result."""
    from gems_ray.cli.console import print_line
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.results.comparison import Comparison
    from gems_ray.results.export import export_runs

    folders = [RunFolder.open(run) for run in dict.fromkeys(runs)]
    if output is None and len(folders) > 1:
        raise ConfigError("export: several runs, and no folder for their tables. Choose one with --output.")
    comparison = Comparison(folders)
    for folder in folders:
        print_tables(folder, comparison if len(folders) == 1 else None)
    for path in export_runs(folders, output or folders[0].path, formats or STANDARD, comparison):
        print_line(f"Wrote {path}")


def print_tables(run: "RunFolder", comparison: "Comparison | None" = None) -> None:
    """Prints the result of a run.

    Args:
        run: that is read.
        comparison: of this run alone, if it has been made already.
    """
    from rich.console import Console

    from gems_ray.results import search, tables
    from gems_ray.results.comparison import Comparison, alike, told_apart

    console = Console(width=80, highlight=False)
    console.print()
    comparison = Comparison([run]) if comparison is None else comparison
    if run.experiment().search:
        shown = search.to_rich(run)
        notes = search.notes(run, search.trials_frame(run)) + search.told_apart(run, comparison.compared)
    else:
        frame = tables.result_frame(run, comparison.tested)
        shown = [tables.to_rich(frame, alike(comparison.compared))]
        notes = tables.notes(frame) + told_apart(comparison.compared)
    for table in shown:
        console.print(table)
    for note in notes:
        console.print(visible(note), markup=False)
