"""`run_tune.py train`: one cell in this process, without Ray."""

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gems_ray.cli.settings import DEFAULT, read_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from gems_ray.errors import Location


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
        str, typer.Option("--compile", help="auto, on, graph (CUDA graphs) or off: how the updates run.")
    ] = "auto",
    storage: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="Name of the run folder [default: from the settings].")] = None,
) -> None:
    """Train one cell without Ray. The same command continues an interrupted one."""
    from gems_ray.cli.console import print_line
    from gems_ray.cli.outcome import run_and_print
    from gems_ray.cli.paths import run_path
    from gems_ray.cli.progress import ConsoleListener
    from gems_ray.experiments.check import check_experiment
    from gems_ray.learning.trainer import resolve_device
    from gems_ray.processor import compute_with
    from gems_ray.program import same_command

    settings, flags = read_settings(algorithm, ctx.obj, setting or [])
    keys: dict[Location, str] = {
        ("settings", algorithm): algorithm,
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
    compute_with(1)
    print_line(f"device: {resolve_device(device)}")
    (cell,) = experiment.cells()
    folder = run_path(storage, cell.name if name is None else name)
    with _in_flags(keys):
        run_and_print(experiment, folder, ConsoleListener(), same_command(), in_process=True)


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
