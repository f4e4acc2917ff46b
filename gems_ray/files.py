"""Atomic writes: a reader sees the old file or the whole new one, whatever happens in between."""

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that takes its place when the block ends without an error.

    A file that is replaced leaves its permissions to the new one. Where `path` is a link, the link is replaced, and
    never what it leads to: a folder that came from elsewhere must not choose which files are written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.chmod(_permissions(path))  # some writers create files that only their owner may read
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def nearest_existing(path: Path) -> Path:
    """The path itself, or as much of it as exists."""
    return next(part for part in (path, *path.absolute().parents) if part.exists())


def log_handler(path: Path, form: str) -> logging.Handler:
    """A handler that adds to a log file, and stays silent where that is impossible: a full disk is told elsewhere."""
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
    handler.handleError = lambda record: None  # type: ignore[method-assign]
    return handler


def write_text_atomically(path: Path, text: str) -> None:
    """Writes `text` in UTF-8, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _permissions(path: Path) -> int:
    """Those of the file that is there, or of a new one."""
    if path.is_file() and not path.is_symlink():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
