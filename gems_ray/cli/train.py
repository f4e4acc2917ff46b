"""`run_tune.py train`: one experiment in this process, without Ray."""

import shlex
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from gems_ray.cli.settings import DEFAULT, read_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gems_ray.errors import Location
    from gems_ray.execution.cell_run import CellRun


def train(
    ctx: typer.Context,
    env_name: Annotated[str, typer.Option("--env_name", "--env-name", help="Environment.")],
    algorithm: Annotated[
        str, typer.Option(help="Algorithm. Every setting of it is a flag, at the end of this list.")
    ] = DEFAULT,
    seed: Annotated[int, typer.Option(min=0, help="Experiment seed.")] = 0,
    max_timesteps: Annotated[
        int, typer.Option("--max_timesteps", "--max-timesteps", min=1, help="Gradient updates.")
    ] = 1_000_000,
    evaluation_interval: Annotated[
        int, typer.Option("--evaluation_interval", "--evaluation-interval", min=1, help="Updates between evaluations.")
    ] = 5_000,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="The same as --NAME VALUE; may be repeated."),
    ] = None,
    quality: Annotated[str, typer.Option(help="Quality of the environment's dataset.")] = "expert",
    dataset: Annotated[Path | None, typer.Option(help="Own npz, in place of the environment's.")] = None,
    world: Annotated[str | None, typer.Option(help="World bundle, in place of the shipped one.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    compile_mode: Annotated[
        str, typer.Option("--compile", help="auto, on or off: compile the updates; auto does for long runs.")
    ] = "auto",
    storage: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run folder [default: from the settings].")] = None,
) -> None:
    """Train one experiment without Ray. The same command continues an interrupted one."""
    import torch

    from gems_ray.cli.console import episode_progress, say
    from gems_ray.cli.export import print_tables
    from gems_ray.cli.paths import run_path
    from gems_ray.execution.cell_run import CellRun
    from gems_ray.execution.sources import open_source, record_datasets, write_references
    from gems_ray.experiments.cell_folder import WITH_RESULT
    from gems_ray.experiments.run_folder import RunFolder, check_free
    from gems_ray.experiments.spec import check_experiment
    from gems_ray.learning.trainer import resolve_device
    from gems_ray.machine import machine_report

    settings, flags = read_settings(algorithm, ctx.obj, setting or [])
    keys: dict[Location, str] = {
        **{("settings", algorithm, name): flag for name, flag in flags.items()},
        **{("training", name): f"--{name}" for name in ("max_timesteps", "evaluation_interval", "device", "compile")},
        ("worlds", env_name): "--world",
        ("dataset", "file"): "--dataset",
        ("dataset", "quality"): "--quality",
    }
    with _in_flags(keys):
        experiment = check_experiment(
            {
                "environment": [env_name],
                "algorithm": [algorithm],
                "seed": [seed],
                "settings": {algorithm: settings} if settings else {},
                "worlds": {env_name: world} if world is not None else {},
                "dataset": {"quality": quality} | ({"file": str(dataset)} if dataset is not None else {}),
                "training": {
                    "max_timesteps": max_timesteps,
                    "evaluation_interval": evaluation_interval,
                    "device": device,
                    "compile": compile_mode,
                },
            }
        )
    torch.set_num_threads(1)
    say(f"device: {resolve_device(device)}")
    (cell,) = experiment.cells()
    folder_path = run_path(storage, cell.name if name is None else name)
    check_free(folder_path, experiment)
    with _in_flags(keys), episode_progress(experiment.dataset.episodes) as progress:
        source = open_source(experiment, env_name, say, progress)
    run = RunFolder.create(folder_path, experiment, machine_report())
    with run.locked():
        record_datasets(run, {env_name: source})
        if source.world:
            write_references(run, experiment, env_name, source.world)
        run.open_cells([cell])
        folder = run.cell(cell.name)
        if folder.status not in WITH_RESULT:
            cell_run = CellRun(folder, source.dataset, source.world, wait_s=1)
            if cell_run.trainer.algorithm.updates:
                say(f"Continuing after {cell_run.trainer.algorithm.updates:,} updates.")
            _train_until_signal(cell_run, say)
    print_tables(run)
    say(f"Run folder: {run.path}")


@contextmanager
def _in_flags(keys: "Mapping[Location, str]") -> "Iterator[None]":
    """Errors speak of the flags that were given, not of the keys of an experiment file that stand for them."""
    from gems_ray.errors import GemsRayError, dotted

    def name(location: "Location") -> str:
        for end in range(len(location), 0, -1):
            if flag := keys.get(location[:end]):
                return dotted((flag, *location[end:]))
        return dotted(location)

    try:
        yield
    except GemsRayError as error:
        raise type(error)(error.told(name)) from None


def _train_until_signal(cell_run: "CellRun", say: "Callable[[str], None]") -> None:
    """Trains to the end; on Ctrl-C or SIGTERM saves between two updates and exits."""
    from gems_ray.execution.cell_run import describe_report

    signals: list[int] = []

    def remember(signum: int, frame: FrameType | None) -> None:
        signals.append(signum)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not cell_run.finished and not signals:
            report = cell_run.advance(stop=lambda: bool(signals))
            if report is not None:
                say(describe_report(report, cell_run.max_timesteps))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if not cell_run.finished:
        cell_run.save()
        say(f"Interrupted; saved after {cell_run.trainer.algorithm.updates:,} updates. Continue with:")
        say("  " + shlex.join(["python", *sys.argv]))
        raise typer.Exit(128 + signals[0])
