"""`run_tune.py submit`: a run as a job of a Ray cluster."""

import re
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from gems_ray.tune.jobs import Jobs

COMMANDS = {"grid": "its experiment file", "search": "its experiment file", "resume": "a run folder of the cluster"}
HIDDEN = "--study-storage"  # may hold a password

JobAddress = Annotated[
    str | None,
    typer.Option(help="URL of the cluster's dashboard [default: RAY_API_SERVER_ADDRESS, or the Ray of this machine]."),
]


def submit(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND ...", help="grid, search or resume as here.")],
    address: JobAddress = None,
    folder: Annotated[
        str, typer.Option(help="Folder on the cluster's head that the run works in, with its datasets and runs.")
    ] = "~/gems_ray_runs",
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the run.")] = False,
) -> None:
    """Run a grid or search as a job of a Ray cluster.

    Sends this version of gems_ray, the experiment file, and the datasets, worlds and algorithms that the file names by
    relative paths. Follows the run, and ends with its exit code. The run goes on if this program ends before.
    """
    import json
    import tempfile

    from gems_ray.cli.console import print_line
    from gems_ray.execution.parcel import FILES, pack
    from gems_ray.experiments.check import load_experiment
    from gems_ray.program import COMMAND, command_line
    from gems_ray.tune.jobs import Jobs

    _check(command)
    words = list(command)
    with tempfile.TemporaryDirectory(prefix="gems_ray-") as parcel:
        Path(parcel, FILES).mkdir()
        if words[0] != "resume":
            print_line(f"Reading {words[1]} ...")
            words[1] = pack(Path(words[1]), load_experiment(Path(words[1])), Path(parcel))
        jobs = Jobs(address)
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(words[1]).stem) or words[0]
        name = f"{stem}-{secrets.token_hex(3)}"
        print_line("Sending ...")
        jobs.submit(
            name,
            entry=f"python -m gems_ray.cli.submitted {shlex.quote(folder)}",
            command=shlex.join(_shown(words)),
            folder=Path(parcel),
            environment={COMMAND: json.dumps(words)},
        )
    print_line(f"Submitted as {name}. It works in {folder} on the head of the cluster.")
    options = ["--address", address] if address else []
    if detach:
        print_line(f"Follow it with:\n  {command_line('jobs', 'logs', name, '--follow', *options)}")
    else:
        follow(jobs, name, options)


def follow(jobs: "Jobs", name: str, options: list[str]) -> NoReturn:
    """Prints what a run prints, until it ends.

    Args:
        jobs: of the cluster.
        name: of the run.
        options: that lead a command to the cluster.
    Raises:
        typer.Exit: with the exit code of the run; 130 after Ctrl-C, which does not touch the run.
    """
    from gems_ray.cli.console import print_line, print_text
    from gems_ray.program import command_line

    try:
        run = jobs.follow(name, print_text)
    except KeyboardInterrupt:
        print_line("The run goes on. Follow it again, or stop it, with:")
        for words in (["logs", name, "--follow"], ["stop", name]):
            print_line(f"  {command_line('jobs', *words, *options)}")
        raise typer.Exit(130) from None
    print_line(str(run))
    raise typer.Exit((0 if run.status == "finished" else 1) if run.code is None else run.code)


def _check(words: list[str]) -> None:
    """Makes sure that the words are a command for a cluster."""
    from gems_ray.errors import ConfigError
    from gems_ray.program import program_name

    example = f"Example: {program_name()} submit -- grid tune_configs/demo.yaml."
    if words[0] not in COMMANDS:
        raise ConfigError(f"submit: expected one of {', '.join(COMMANDS)}, found `{words[0]}`. {example}")
    if len(words) < 2 or words[1].startswith("-"):
        raise ConfigError(f"submit: expected {COMMANDS[words[0]]} right after `{words[0]}`. {example}")
    if any(word.partition("=")[0] == "--address" for word in words[2:]):
        raise ConfigError("submit: the run joins the cluster that it is sent to. Put --address before `--`.")


def _shown(words: list[str]) -> list[str]:
    """The words without what may be a password."""
    shown = []
    for before, word in zip(["", *words], words, strict=False):
        option, equals, _ = word.partition("=")
        hidden = f"{HIDDEN}=URL" if equals and option == HIDDEN else "URL"
        shown.append(hidden if HIDDEN in (before, option) and word != HIDDEN else word)
    return shown
