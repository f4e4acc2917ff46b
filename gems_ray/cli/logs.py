"""`run_tune.py logs`: what happened to a cell, without Ray."""

import time
from pathlib import Path
from typing import Annotated

import typer

POLL_SECONDS = 0.5


def logs(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    cell: Annotated[str, typer.Argument(help="Name of a cell, or a part of it that no other cell has.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the cell ends or Ctrl-C.")] = False,
) -> None:
    """Print the log of a cell."""
    from gems_ray.cli.console import print_line
    from gems_ray.experiments.cell_folder import ENDED
    from gems_ray.experiments.run_folder import RunFolder

    folder = RunFolder.open(run).find_cell(cell)
    position = 0
    while True:
        ended = folder.status in ENDED  # asked before reading, so that the last lines are not missed
        if folder.log.exists():
            with folder.log.open("rb") as file:
                file.seek(position)
                text = file.read()
            whole = text[: text.rfind(b"\n") + 1] if follow and not ended else text
            position += len(whole)
            if whole:
                print_line(whole.decode("utf-8", errors="replace").rstrip("\n"))
        if not follow or ended:
            break
        time.sleep(POLL_SECONDS)
    if not position:
        print_line(f"{folder.path.name} has no log yet ({folder.status}).")
