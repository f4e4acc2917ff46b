"""`run_tune.py compare`: two runs against each other, without ray or torch."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gems_ray.results.text_table import TextTable

FOLDED = {"part": ("A", "B"), "algorithm": ("algorithm", "settings")}  # by the first column, where a row is too long
LEFT_OUT = ("B wins", "seeds")  # for which 80 columns have no place


def compare(
    run_a: Annotated[Path, typer.Argument(help="Run folder.")],
    run_b: Annotated[Path, typer.Argument(help="Run folder.")],
) -> None:
    """Show what differs between two runs: configuration, versions, data and results."""
    from rich.console import Console

    from gems_ray.cli.console import print_line, visible
    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.results.difference_tables import difference_tables
    from gems_ray.results.text_table import draw

    tables = difference_tables(RunFolder.open(run_a), RunFolder.open(run_b))
    console = Console(width=80, highlight=False)
    print_line(f"A: {run_a}\nB: {run_b}")
    for table in tables:
        print_line(f"\n{table.title}")
        for part in _parts(table):
            if part.title:
                print_line(part.title)
            console.print(draw(part, FOLDED[part.header[0]]))
        for note in table.notes:
            if not note.startswith(LEFT_OUT):
                console.print(visible(note), markup=False)


def _parts(table: "TextTable") -> Iterator["TextTable"]:
    """A table for each environment, whose name takes a line and no column; other tables as they are."""
    if not table.header or table.header[0] != "environment":
        yield from [replace(table, title="")] if table.header else []
        return
    kept = [index for index, name in enumerate(table.header) if index and name not in LEFT_OUT]
    for environment, rows in groupby(table.rows, key=lambda row: row[0]):
        header, body = [table.header[index] for index in kept], [[row[index] for index in kept] for row in rows]
        yield replace(table, title=f"{environment}:", header=header, rows=body, left=table.left - 1)
