"""Entry point: one line for a user's mistake, exit code 2; no stack trace."""

import sys
import tempfile
import traceback
from typing import Any

import typer
from rich.console import Console

from gems_ray.cli import dataset, jobs, world
from gems_ray.cli.collect import collect
from gems_ray.cli.compare import compare
from gems_ray.cli.console import visible
from gems_ray.cli.dashboard import dashboard
from gems_ray.cli.export import export
from gems_ray.cli.grid import grid
from gems_ray.cli.init_configs import init_configs
from gems_ray.cli.logs import logs
from gems_ray.cli.plan import plan
from gems_ray.cli.plot import plot
from gems_ray.cli.report import report
from gems_ray.cli.resume import resume
from gems_ray.cli.search import search
from gems_ray.cli.settings import SettingsCommand
from gems_ray.cli.status import status
from gems_ray.cli.submit import submit
from gems_ray.cli.train import train
from gems_ray.cli.watch import watch
from gems_ray.errors import GemsRayError
from gems_ray.execution.interruption import listening
from gems_ray.program import program_name
from gems_ray.results.text import one_line

app = typer.Typer(
    help="Offline reinforcement learning for slate recommendation, from simulator to result table.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(world.app, name="world")
app.add_typer(dataset.app, name="dataset")
app.add_typer(jobs.app, name="jobs")
for command in (
    collect,
    train,
    grid,
    search,
    plan,
    status,
    watch,
    logs,
    dashboard,
    resume,
    submit,
    export,
    compare,
    plot,
    report,
    init_configs,
):
    app.command(cls=SettingsCommand if command is train else None)(command)


UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer exports only what derives from it
OUT_OF_MEMORY = ("can't allocate memory", "out of memory")  # torch's RuntimeErrors


def main() -> None:
    """Runs the command line."""
    try:
        with listening():
            sys.exit(app(prog_name=program_name(), standalone_mode=False) or 0)
    except UsageError as error:
        _print_usage_error(error)
        sys.exit(2)
    except GemsRayError as error:
        print_error(error)
        sys.exit(2)
    except typer.Abort:  # Ctrl-C where there was nothing to save
        print_error("interrupted.")
        sys.exit(130)
    except OSError as error:  # a full disk, a folder without permission
        print_error(f"{error.filename}: {error.strerror}." if error.filename and error.strerror else error)
        sys.exit(2)
    except Exception as error:
        if isinstance(error, MemoryError) or any(text in str(error).lower() for text in OUT_OF_MEMORY):
            print_error("memory: what was asked for does not fit. Lower batch_size, hidden_sizes, episodes or users.")
            sys.exit(2)
        with tempfile.NamedTemporaryFile("w", prefix="gems_ray-", suffix=".log", delete=False) as file:
            traceback.print_exc(file=file)
        print_error(f"unexpected {type(error).__name__}: {error}. Please report it with {file.name}.")
        sys.exit(1)


def _print_usage_error(error: Any) -> None:
    """A mistake in the options as one line; the help where nothing was given at all."""
    message, context = error.format_message(), error.ctx
    if "\n" in message:
        typer.echo(message, err=True)
        return
    command = context.command_path if context else program_name()
    print_error(f"{command}: {message.rstrip('.')}. See `{command} --help`.")


def print_error(error: Exception | str) -> None:
    """Prints an error as it is: no markup, no wrapping. Of several lines only where there are several mistakes."""
    text = f"error: {error}" if isinstance(error, GemsRayError) else one_line(f"error: {error}")
    Console(stderr=True).print(visible(text), markup=False, highlight=False, soft_wrap=True)
