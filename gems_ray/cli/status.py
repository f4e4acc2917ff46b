"""`run_tune.py status`: how far a run has come, from any terminal, without Ray."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def status(
    run: Annotated[Path | None, typer.Argument(help="Run folder [default: every run of --storage].")] = None,
    storage: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
) -> None:
    """Show how far runs have come.

    Every cell of a run, or every run of --storage in a line each. Needs no Ray, and works while a run goes on.
    """
    from gems_ray.cli.console import console, say
    from gems_ray.cli.progress import cell_table
    from gems_ray.errors import RunFolderError
    from gems_ray.experiments.progress import read_progress
    from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder

    if run is not None:
        progress = read_progress(RunFolder.open(run))
        console.print(cell_table(progress.cells))
        for cell in progress.cells:
            if cell.reason:
                say(f"{cell.state}: {cell.name}: {cell.reason}")
        say(progress.summary())
        if progress.stopped:
            say(f"Continue with:\n  {shlex.join(['python', 'run_tune.py', 'resume', str(run)])}")
        return
    folders = sorted(described.parent for described in storage.glob(f"*/{EXPERIMENT}"))
    if not folders:
        say(f"No runs in {storage}. `run_tune.py grid tune_configs/demo.yaml` makes one.")
    stopped = False
    for folder in folders:
        try:
            progress = read_progress(RunFolder(folder))
            say(f"{folder}: {progress.summary()}")
            stopped |= progress.stopped
        except (RunFolderError, OSError) as error:  # the other runs can be shown all the same
            say(f"{folder}: {str(error).splitlines()[0]}")
    if stopped:
        say("`python run_tune.py resume RUN` goes on with a run that no process runs.")
