"""`run_tune.py dataset`: datasets in other formats."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)
MinariName = Annotated[str, typer.Option("--minari", help="What Minari calls it: gems_ray/diffuse_mix-expert-v0.")]


@app.callback()
def dataset() -> None:
    """Bring datasets into other formats and back."""


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
