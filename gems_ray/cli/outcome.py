"""Runs an experiment and prints what came of it."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

import gems_ray
from gems_ray.cli.console import print_line
from gems_ray.cli.export import print_tables
from gems_ray.experiments.cell_folder import FAILED
from gems_ray.experiments.progress import read_progress
from gems_ray.experiments.run_folder import EXPERIMENT, RunFolder
from gems_ray.program import COMMAND, command_line

if TYPE_CHECKING:
    from gems_ray.cli.progress import ConsoleListener


def run_and_print(
    experiment: "gems_ray.Experiment", folder: Path, listener: "ConsoleListener", again: str, **options: Any
) -> None:
    """Runs what has not ended yet, then prints the result and how to go on.

    Args:
        experiment: grid or search.
        folder: of the run.
        listener: shows what is done.
        again: the command that goes on after an interruption.
        options: of `gems_ray.run`.
    Raises:
        typer.Exit: 128 and the signal's number when interrupted, 1 when cells failed or are not finished.
    """
    interrupted_by = 0
    with listener:
        try:
            gems_ray.run(experiment, folder, listener=listener, **options)
        except gems_ray.RunInterrupted as interruption:
            interrupted_by = interruption.number
    if interrupted_by and not (folder / EXPERIMENT).exists():
        print_line("Interrupted before anything was begun.")
        raise typer.Exit(128 + interrupted_by)
    run = RunFolder.open(folder)
    print_tables(run)
    results = {cell.path.name: cell.result() for cell in run.cells()}
    failed = {name: result for name, result in results.items() if result and result.status == FAILED}
    for name, result in failed.items():
        print_line(f"failed: {name}: {result.reason or ''}")
    print_line(f"Run folder: {folder}")
    progress = read_progress(run)
    if progress.has_work or interrupted_by:
        print_line(f"{progress.counts()}; everything is saved. Continue with:")
        print_line(f"  {again}")
    if interrupted_by:
        raise typer.Exit(128 + interrupted_by)
    if progress.has_work or failed:
        raise typer.Exit(1)


def resume_command(folder: Path, address: str | None, study_storage: str | None) -> str:
    """The command that goes on with a run."""
    words = ["resume", str(folder)]
    words += ["--study-storage", "URL"] if study_storage else []  # not repeated: it may hold a password
    if COMMAND in os.environ:  # on a cluster, for a person who sits elsewhere
        return command_line("submit", "--folder", str(Path.cwd()), "--", *words)
    words += ["--address", address] if address else []
    return command_line(*words)
