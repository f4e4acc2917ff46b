"""`run_tune.py jobs`: the runs that were submitted to a Ray cluster."""

from typing import Annotated

import typer

from gems_ray.cli.submit import JobAddress, follow

app = typer.Typer(no_args_is_help=True)

JobName = Annotated[str, typer.Argument(help="Name of the job, as `submit` and `jobs list` print it.")]


@app.callback()
def jobs() -> None:
    """List, follow and stop submitted runs."""


@app.command("list")
def list_runs(address: JobAddress = None) -> None:
    """List the submitted runs of a cluster, the latest first."""
    from rich.table import Table
    from rich.text import Text

    from gems_ray.cli.console import console, print_line, visible
    from gems_ray.program import program_name
    from gems_ray.tune.jobs import Jobs

    runs = Jobs(address).runs()
    if not runs:
        print_line(f"No submitted runs. `{program_name()} submit -- grid tune_configs/demo.yaml` makes one.")
        return
    table = Table("job", "state", "code", "begun", "command", box=None, pad_edge=False)
    for run in runs:
        begun, code = f"{run.begin:%m-%d %H:%M}" if run.begin else "-", "-" if run.code is None else str(run.code)
        table.add_row(Text(visible(run.name)), run.status, code, begun, Text(visible(run.command)))
    console.print(table)


@app.command()
def logs(
    name: JobName,
    follow_it: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends or Ctrl-C.")] = False,
    address: JobAddress = None,
) -> None:
    """Print what a submitted run has printed."""
    from gems_ray.cli.console import print_text
    from gems_ray.tune.jobs import Jobs

    cluster = Jobs(address)
    if follow_it:
        follow(cluster, name, ["--address", address] if address else [])
    print_text(cluster.log(name))


@app.command()
def stop(name: JobName, address: JobAddress = None) -> None:
    """Stop a submitted run; its cells are saved first."""
    from gems_ray.cli.console import print_line
    from gems_ray.tune.jobs import Jobs

    print_line(str(Jobs(address).stop(name)))
