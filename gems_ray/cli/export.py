"""`run_tune.py export`: tables of a run, without ray or torch."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gems_ray.experiments.run_folder import RunFolder


def export(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the tables [default: the run folder].")] = None,
) -> None:
    """Write the tables of a run again and print the result."""
    from gems_ray.cli.console import print_line
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.results.export import write_tables

    folder = RunFolder.open(run)
    print_tables(folder)
    for path in write_tables(folder, output or run):
        print_line(f"Wrote {path}")


def print_tables(run: "RunFolder") -> None:
    """Prints the result of a run."""
    from rich.console import Console

    from gems_ray.results import search, tables

    console = Console(width=80, highlight=False)
    console.print()
    if run.experiment().search:
        shown, notes = search.to_rich(run), search.notes(run, search.trials_frame(run))
    else:
        frame = tables.result_frame(run)
        shown, notes = [tables.to_rich(frame)], tables.notes(frame)
    for table in shown:
        console.print(table)
    for note in notes:
        console.print(note, markup=False)
