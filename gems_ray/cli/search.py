"""`run_tune.py search`: Optuna's choice of settings under Ray Tune."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.options import Address, DryRun, Name, Storage, StudyStorage
from gems_ray.cli.paths import RUNS, run_places


def search(
    config: Annotated[
        Path, typer.Argument(help="Experiment file with `search`, e.g. tune_configs/search_td3_bc.yaml.")
    ],
    storage: Storage = RUNS,
    name: Name = None,
    address: Address = None,
    study_storage: StudyStorage = None,
    dry_run: DryRun = False,
) -> None:
    """Search for the best settings with Optuna.

    The best ones and the defaults are then trained again on fresh seeds and scored by the test users. The same command
    continues an interrupted search.
    """
    from gems_ray.cli.console import print_line

    print_line(f"Reading {config} ...")  # before torch, whose import may take long on a busy machine

    from gems_ray.cli.outcome import resume_command, run_and_print
    from gems_ray.cli.plan import print_plan
    from gems_ray.cli.progress import CellsListener
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.check import load_experiment
    from gems_ray.program import program_name

    experiment = load_experiment(config)
    if not experiment.search:
        raise ConfigError(
            f"{config}: has no `search`. Run it with `{program_name()} grid {config}`, or add what to search."
        )
    folder, uri = run_places(storage, config.stem if name is None else name)
    if dry_run:
        print_plan(experiment, folder, address)
    else:
        again = resume_command(folder, address, study_storage)
        options = {"address": address, "storage": uri, "study_storage": study_storage}
        run_and_print(experiment, folder, CellsListener(), again, **options)
