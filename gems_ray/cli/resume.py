"""`run_tune.py resume`: goes on with a run, whatever ended it."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.grid import Address
from gems_ray.cli.search import StudyStorage


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder, moved or copied ones too.")],
    address: Address = None,
    study_storage: StudyStorage = None,
) -> None:
    """Continue a run from its folder, whatever ended it.

    Cells that have ended stay as they are, failed ones run again, others go on from their last checkpoints.
    """
    from gems_ray.cli.execute import execute
    from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder
    from gems_ray.experiments.spec import load_experiment

    folder = RunFolder.open(run)
    execute(load_experiment(folder.path / EXPERIMENT), run, address, study_storage)
