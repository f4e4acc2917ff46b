"""`run_tune.py status`: how far a run has come, from any terminal, without Ray."""

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
    from gems_ray.cli.console import console, print_line
    from gems_ray.cli.progress import cell_table
    from gems_ray.errors import RunFolderError
    from gems_ray.experiments.progress import read_progress
    from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder
    from gems_ray.program import command_line, program_name

    if run is not None:
        progress = read_progress(RunFolder.open(run))
        console.print(cell_table(progress.cells))
        for cell in progress.cells:
            if cell.reason:
                print_line(f"{cell.state}: {cell.name}: {cell.reason}")
        print_line(progress.summary())
        if progress.stopped:
            print_line(f"Continue with:\n  {command_line('resume', str(run))}")
        return
    folders = sorted(described.parent for described in storage.glob(f"*/{EXPERIMENT}"))
    if not folders:
        print_line(f"No runs in {storage}. `{program_name()} grid tune_configs/demo.yaml` makes one.")
    stopped = False
    for folder in folders:
        try:
            progress = read_progress(RunFolder(folder))
            print_line(f"{folder}: {progress.summary()}")
            stopped |= progress.stopped
        except (RunFolderError, OSError) as error:  # the other runs can be shown all the same
            print_line(f"{folder}: {str(error).splitlines()[0]}")
    if stopped:
        print_line(f"`{command_line('resume', 'RUN')}` goes on with a run that no process runs.")
