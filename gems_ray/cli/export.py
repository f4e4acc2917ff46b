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
    from analysis.tables import export as write_tables
    from gems_ray.cli.console import say
    from gems_ray.experiments.run_folder import RunFolder

    folder = RunFolder.open(run)
    print_table(folder)
    for path in write_tables(folder, output or run):
        say(f"Wrote {path}")


def print_table(run: "RunFolder") -> None:
    """Prints the result table of a run."""
    from rich.console import Console

    from analysis.tables import notes, result_frame, to_rich

    table = result_frame(run)
    console = Console(width=80, highlight=False)
    console.print()
    console.print(to_rich(table))
    for note in notes(table):
        console.print(note, markup=False)
