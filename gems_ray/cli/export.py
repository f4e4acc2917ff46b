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
    from gems_ray.cli.console import say
    from gems_ray.experiments.run_folder import RunFolder

    folder = RunFolder.open(run)
    print_tables(folder)
    for path in write_tables(folder, output or run):
        say(f"Wrote {path}")


def write_tables(run: "RunFolder", folder: Path) -> list[Path]:
    """Writes the tables of a run into a folder; returns their paths."""
    from gems_ray.results import search, tables

    if run.experiment().search:
        return [*search.export(run, folder), tables.export_cells(run, folder)]
    return tables.export(run, folder)


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
