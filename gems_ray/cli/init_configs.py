"""`run_tune.py init-configs`: the experiment files that come with the program."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer


def init_configs(
    folder: Annotated[Path, typer.Argument(help="Folder to write into, new or existing.")] = Path("tune_configs"),
) -> None:
    """Write the experiment files that come with the program. Files of the same name stay as they are."""
    from gems_ray.cli.console import print_line
    from gems_ray.cli.paths import check_folder
    from gems_ray.files import write_text_atomically

    check_folder(folder, "folder")
    kept = 0
    files = [file for file in (resources.files("gems_ray") / "tune_configs").iterdir() if file.name.endswith(".yaml")]
    for file in files:
        path = folder / file.name
        if path.exists():
            kept += 1
        else:
            write_text_atomically(path, file.read_text(encoding="utf-8"))
    print_line(f"Wrote {len(files) - kept} files into {folder}" + (f"; {kept} were there already." if kept else "."))
