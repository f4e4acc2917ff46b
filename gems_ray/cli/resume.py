"""`run_tune.py resume`: goes on with a run, whatever ended it."""

from pathlib import Path
from typing import Annotated

import typer

from gems_ray.cli.options import Address, StudyStorage


def resume(
    run: Annotated[Path, typer.Argument(help="Run folder, moved or copied ones too.")],
    address: Address = None,
    study_storage: StudyStorage = None,
) -> None:
    """Continue a run from its folder, whatever ended it.

    Cells that have ended stay as they are, failed ones run again, others go on from their last checkpoints.
    """
    from gems_ray.cli.console import print_line

    print_line(f"Reading {run} ...")  # before torch, whose import may take long on a busy machine

    from gems_ray.cli.outcome import resume_command, run_and_print
    from gems_ray.cli.progress import CellsListener
    from gems_ray.experiments.check import load_experiment
    from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder

    experiment = load_experiment(RunFolder.open(run).path / EXPERIMENT)
    again = resume_command(run, address, study_storage)
    run_and_print(experiment, run, CellsListener(), again, address=address, study_storage=study_storage)
