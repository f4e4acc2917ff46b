"""`run_tune.py dataset`: what is in a file, and which world it belongs to."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="npz file.")]


@app.callback()
def dataset() -> None:
    """Look into dataset files, and bind foreign ones to their world."""


@app.command()
def check(
    file: File,
    world: Annotated[str | None, typer.Option(help="World whose action box the actions are compared with.")] = None,
) -> None:
    """Say what is in a dataset file and what can be done with it. Exit code 2 where it cannot be used."""
    from gems_ray.api import check_dataset
    from gems_ray.cli.console import print_line

    report = check_dataset(file, world)
    for line in report.lines():
        print_line(line)
    if report.problems:
        raise typer.Exit(2)


@app.command()
def attach(
    file: File,
    world: Annotated[str, typer.Option(help="World in which the file was logged: a folder, or a shipped one.")],
    quality: Annotated[
        str | None, typer.Option(help="What the file calls its behaviour policy [default: as its name says].")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write [default: the same, replaced as a whole].")] = None,
) -> None:
    """Bind a foreign file to its world, after testing that they belong together."""
    import torch

    from gems_ray.api import attach_dataset
    from gems_ray.cli.console import print_line

    torch.set_num_threads(1)
    found = attach_dataset(file, world, quality=quality, output=output)
    for line in found.lines():
        print_line(line)
    print_line(f"{output or file}: bound to world {found.world}.")
