"""`run_tune.py grid`: all cells of an experiment under Ray Tune."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.paths import run_path

Storage = Annotated[Path, typer.Option(help="Folder of the run folders.")]
Name = Annotated[str | None, typer.Option(help="Name of the run folder [default: name of the file].")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join, in place of this machine.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check and list everything, run nothing (as `plan`).")]


def grid(
    config: Annotated[Path, typer.Argument(help="Experiment file, for example tune_configs/grid.yaml.")],
    storage: Storage = Path("runs"),
    name: Name = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Run every cell of an experiment file. The same command continues an interrupted run."""
    from gems_ray.cli.execute import execute
    from gems_ray.cli.plan import print_plan
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.spec import load_experiment

    experiment = load_experiment(config)
    if experiment.search:
        raise ConfigError(f"{config}: describes a search. Run it with `run_tune.py search {config}`.")
    folder = run_path(storage, config.stem if name is None else name)
    if dry_run:
        print_plan(experiment, folder, address)
    else:
        execute(experiment, folder, address)
