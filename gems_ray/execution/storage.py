"""Where the checkpoints of a run lie: a folder, or whatever else pyarrow opens."""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from pyarrow import fs

from gems_ray.errors import RunFolderError
from gems_ray.experiments.records import CellCheckpoint


class CheckpointStorage:
    """Reads and removes checkpoints by their paths below a root.

    Args:
        root: a folder, or a URI such as s3://bucket/run.
    Raises:
        RunFolderError: the URI cannot be opened.
    """

    def __init__(self, root: str) -> None:
        self.filesystem, self._root = open_storage(root)

    def path_of(self, absolute: str) -> str:
        """What `CellCheckpoint.path` says of a folder of this storage."""
        return absolute.removeprefix(self._root).lstrip("/")

    @contextmanager
    def fetched(self, checkpoint: CellCheckpoint) -> Iterator[Path]:
        """A checkpoint as a folder of this machine, for a while."""
        absolute = os.path.normpath(f"{self._root}/{checkpoint.path}")
        if isinstance(self.filesystem, fs.LocalFileSystem):
            yield Path(absolute)
            return
        with tempfile.TemporaryDirectory(prefix="gems_ray-") as folder:
            with suppress(FileNotFoundError):  # what is missing is told by whoever reads it
                fs.copy_files(absolute, folder, source_filesystem=self.filesystem)
            yield Path(folder)

    @contextmanager
    def written(self, path: str) -> Iterator[Path]:
        """A folder to write a checkpoint into, which lies at its path when the block has ended."""
        absolute = f"{self._root}/{path}"
        if isinstance(self.filesystem, fs.LocalFileSystem):
            Path(absolute).mkdir(parents=True, exist_ok=True)
            yield Path(absolute)
            return
        with tempfile.TemporaryDirectory(prefix="gems_ray-") as folder:
            yield Path(folder)
            self.filesystem.create_dir(absolute)
            fs.copy_files(folder, absolute, destination_filesystem=self.filesystem)

    def remove(self, path: str) -> None:
        """Removes a checkpoint that is of no use any more; one that is gone already is no mistake.

        What lies outside of the storage stays: an older version kept checkpoints among the records of a cell, and a
        record that somebody else wrote may name any folder.
        """
        parts = PurePosixPath(path).parts
        if parts and ".." not in parts:
            with suppress(OSError):
                self.filesystem.delete_dir(f"{self._root}/{path}")


def attempt_name() -> str:
    """A folder for the checkpoints of one attempt at a run: none has it, on whatever machine the run goes on."""
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def storage_of_run(storage: str, name: str) -> str:
    """Where a run of this name keeps its checkpoints in a storage of many runs.

    Args:
        storage: a folder, or a URI, with or without a query.
        name: of the run.
    """
    place, mark, query = storage.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def absolute(root: str) -> str:
    """A folder or URI as every process finds it, whatever its working directory."""
    return root if "://" in root else str(Path(root).absolute())


def open_storage(root: str) -> tuple[fs.FileSystem, str]:
    """File system and path of a folder or URI.

    Raises:
        RunFolderError: the URI holds a password, or nothing answers there.
    """
    if "://" not in root:
        return fs.LocalFileSystem(), absolute(root)
    if "@" in urlsplit(root).netloc:
        raise RunFolderError(
            "--storage: expected a URI without keys, because it is written into the run folder. Give them by the "
            "environment, for example AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(root)
        filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"--storage {root}: cannot be opened ({str(error).splitlines()[0]}).") from None
    return filesystem, path.rstrip("/")
