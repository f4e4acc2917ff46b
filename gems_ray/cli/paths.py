"""Folders that the commands write into, checked before anything is done."""

import os
from pathlib import Path

RUNS = "runs"
LONGEST_NAME = 255  # bytes, of a file or folder


def run_places(storage: str, name: str) -> tuple[Path, str | None]:
    """The run folder of a name, and the URI below which its checkpoints are kept, if that is elsewhere.

    Args:
        storage: a folder, or a URI.
        name: of the run.
    Raises:
        ConfigError: as `run_path`.
    """
    return (run_path(Path(RUNS), name), storage) if "://" in storage else (run_path(Path(storage), name), None)


def run_path(storage: Path, name: str) -> Path:
    """The run folder of a name.

    Args:
        storage: folder of the run folders.
        name: of the run.
    Raises:
        ConfigError: the name is not one of a folder below the storage, or a file stands in the way.
    """
    from gems_ray.errors import ConfigError

    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute():
        raise ConfigError(f"--name: expected the name of a folder in {storage}, found `{name}`. Choose another one.")
    if (longest := max(len(os.fsencode(part)) for part in parts)) > LONGEST_NAME:
        raise ConfigError(f"--name: expected at most {LONGEST_NAME} bytes, found {longest}. Choose a shorter one.")
    path = storage / name
    check_folder(path, "--name or --storage")
    return path


def check_folder(path: Path, option: str) -> None:
    """Makes sure that a path is, or can become, a folder.

    Args:
        path: new, or a folder.
        option: that chooses another one, for the message.
    Raises:
        ConfigError: it is a file, or would lie below one.
    """
    from gems_ray.errors import ConfigError
    from gems_ray.files import nearest_existing

    place = nearest_existing(path)
    if not place.is_dir():
        raise ConfigError(f"{path}: expected a folder, but `{place}` is a file. Choose another {option}.")
