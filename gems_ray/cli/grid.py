"""`run_tune.py grid`: all cells of an experiment under Ray Tune."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.options import Address, DryRun, Name, Storage
from gems_ray.cli.paths import RUNS, run_places


def grid(
    config: Annotated[Path, typer.Argument(help="Experiment file, for example tune_configs/grid.yaml.")],
    storage: Storage = RUNS,
    name: Name = None,
    address: Address = None,
    dry_run: DryRun = False,
) -> None:
    """Run every cell of an experiment file. The same command continues an interrupted run."""
    from gems_ray.cli.console import print_line

    print_line(f"Reading {config} ...")  # before torch, whose import may take long on a busy machine

    from gems_ray.cli.outcome import resume_command, run_and_print
    from gems_ray.cli.plan import print_plan
    from gems_ray.cli.progress import CellsListener
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.check import load_experiment
    from gems_ray.program import program_name

    experiment = load_experiment(config)
    if experiment.search:
        raise ConfigError(f"{config}: describes a search. Run it with `{program_name()} search {config}`.")
    folder, uri = run_places(storage, config.stem if name is None else name)
    if dry_run:
        print_plan(experiment, folder, address)
    else:
        again = resume_command(folder, address, None)
        run_and_print(experiment, folder, CellsListener(), again, address=address, storage=uri)
