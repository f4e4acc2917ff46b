"""`run_tune.py grid`: all cells of an experiment under Ray Tune."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gems_ray.experiments.run_folder import RunFolder
    from gems_ray.experiments.spec import Experiment
    from gems_ray.training.sources import Source


def grid(
    config: Annotated[Path, typer.Argument(help="Experiment file, for example tune_configs/grid.yaml.")],
    storage: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run folder [default: name of the file].")] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join, in place of this machine.")] = None,
) -> None:
    """Run every cell of an experiment file. The same command continues an interrupted run."""
    from analysis.tables import export as write_tables
    from gems_ray.cli.console import episode_progress, say
    from gems_ray.cli.export import print_table
    from gems_ray.environment_report import environment_report
    from gems_ray.experiments.run_folder import FAILED, WITH_RESULT, RunFolder, check_free
    from gems_ray.experiments.spec import load_experiment
    from gems_ray.training.sources import open_source, write_references
    from gems_ray.training.trainer import resolve_device

    experiment = load_experiment(config)
    if address is None:
        resolve_device(experiment.training.device)  # an error now, not in every cell
    folder = storage / (name or config.stem)
    check_free(folder, experiment)
    with episode_progress(experiment.dataset.episodes) as progress:
        sources = {key: open_source(experiment, key, say, progress) for key in experiment.environment}
    run = RunFolder.create(folder, experiment, environment_report())
    for environment, source in sources.items():
        if source.world:
            write_references(run, experiment, environment, source.world)

    cells = experiment.cells()
    interrupted = False
    if any(run.cell(cell.name).status not in WITH_RESULT for cell in cells):
        interrupted = _run_under_ray(experiment, run, sources, address)
    statuses = [run.cell(cell.name).status for cell in cells]
    print_table(run)
    write_tables(run, run.path)
    for cell in cells:
        result = run.cell(cell.name).result() or {}
        if result.get("status") == FAILED:
            say(f"failed: {cell.name}: {result.get('reason')}")
    say(f"Run folder: {run.path}")
    if unfinished := sum(status not in (*WITH_RESULT, FAILED) for status in statuses):
        say(f"{unfinished} of {len(cells)} cells are not finished; all are saved. Continue with:")
        say("  " + shlex.join(["python", *sys.argv]))
    if interrupted:
        raise typer.Exit(130)
    if FAILED in statuses or unfinished:
        raise typer.Exit(1)


def _run_under_ray(
    experiment: "Experiment", run: "RunFolder", sources: "Mapping[str, Source]", address: str | None
) -> bool:
    """Runs the unfinished cells; true when they were interrupted."""
    from gems_ray.cli.console import say
    from gems_ray.cli.progress import GridProgress
    from gems_ray.tune.cluster import connected, token_file, usable_resources
    from gems_ray.tune.run import run_cells

    say("Starting Ray ..." if address is None else f"Joining Ray at {address} ...")
    with connected(address) as dashboard:
        resources = usable_resources(experiment.resources, say)
        say(f"Ray dashboard: {dashboard or 'not available'}")
        say(f"Its token is in {token_file() or 'no file (authentication is off, or RAY_AUTH_TOKEN is set)'}")
        with GridProgress(experiment) as watch:
            return run_cells(experiment, run, sources, resources, watch)
