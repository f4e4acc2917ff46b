"""`run_tune.py search`: Optuna's choice of settings under Ray Tune."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.grid import Address, DryRun, Name, Storage
from gems_ray.cli.paths import run_path

StudyStorage = Annotated[
    str | None,
    typer.Option(
        "--study-storage",
        help="Database of the study, postgresql://user:password@host/database [default: study.db in the run folder].",
    ),
]


def search(
    config: Annotated[
        Path, typer.Argument(help="Experiment file with `search`, e.g. tune_configs/search_td3_bc.yaml.")
    ],
    storage: Storage = Path("runs"),
    name: Name = None,
    address: Address = None,
    study_storage: StudyStorage = None,
    dry_run: DryRun = False,
) -> None:
    """Search for the best settings with Optuna.

    The best ones and the defaults are then trained again on fresh seeds and scored by the test users. The same command
    continues an interrupted search.
    """
    from gems_ray.cli.execute import execute
    from gems_ray.cli.plan import print_plan
    from gems_ray.errors import ConfigError
    from gems_ray.experiments.spec import load_experiment

    experiment = load_experiment(config)
    if not experiment.search:
        raise ConfigError(f"{config}: has no `search`. Run it with `run_tune.py grid {config}`, or add what to search.")
    folder = run_path(storage, config.stem if name is None else name)
    if dry_run:
        print_plan(experiment, folder, address)
    else:
        execute(experiment, folder, address, study_storage)
