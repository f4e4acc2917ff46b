"""`run_tune.py dataset`: what is in a file, which world it belongs to, and other formats."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
MinariName = Annotated[str, typer.Option("--minari", help="What Minari calls it: gems_ray/diffuse_mix-expert-v0.")]
File = Annotated[Path, typer.Argument(help="npz file.")]


@app.callback()
def dataset() -> None:
    """Look into dataset files, bind foreign ones to their world, and bring them into other formats and back."""


@app.command("export")
def export_dataset(
    file: Annotated[Path, typer.Argument(help="The npz.", show_default=False)],
    name: MinariName,
) -> None:
    """Write a dataset into Minari's folder of local datasets."""
    from gems_ray.cli.console import print_line
    from gems_ray.data.npz import load_dataset
    from gems_ray.envs.minari import export_minari

    loaded = load_dataset(file)
    folder = export_minari(loaded, name)
    print_line(f"{name}: {len(loaded):,} transitions in {folder}, dataset {loaded.fingerprint}")


@app.command("import")
def import_dataset(
    name: MinariName,
    output: Annotated[Path, typer.Option(help="The npz to write.")],
) -> None:
    """Write one of Minari's local datasets as an npz."""
    from gems_ray.cli.console import print_line
    from gems_ray.envs.minari import import_minari
    from gems_ray.execution.sources import check_target

    check_target(output, "--output")
    loaded = import_minari(name)
    loaded.save(output)
    print_line(f"{output}: {len(loaded):,} transitions, dataset {loaded.fingerprint}")


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
    from gems_ray.api import attach_dataset
    from gems_ray.cli.console import print_line
    from gems_ray.execution.sources import check_target
    from gems_ray.processor import compute_with

    compute_with(1)
    if output is not None:
        check_target(output, "--output")
    found = attach_dataset(file, world, quality=quality, output=output)
    for line in found.lines():
        print_line(line)
    print_line(f"{output or file}: bound to world {found.world}.")
