"""Reading arrays from npz archives of strangers: every array is measured before memory is asked for it."""

import lzma
import math
import stat
import warnings
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
import psutil

from gems_ray.errors import DatasetError, GemsRayError

NPY_MAGIC, ZIP_MAGIC, HDF5_MAGIC = b"\x93NUMPY", b"PK", b"\x89HDF\r\n\x1a\n"  # how files begin
MOST_MEMBERS = 1_000  # arrays of an archive
SHOWN_NAME = 60  # characters of a name that stands in a file
LARGEST_TEXT = 10_000_000  # bytes of `metadata`
# Logged numbers hardly shrink; what expands to this many times its size, and is large, was made to fill the memory.
MOST_EXPANSION, LARGE = 200, 100_000_000
LONGEST_HEADER = 10_000  # bytes, as numpy allows; those of plain arrays have about 100
PIECE = 1 << 20  # bytes that are unpacked at once
NPY_VERSIONS = {  # bytes of the number that says how long the header is, and what reads it
    b"\x01\x00": (2, np.lib.format.read_array_header_1_0),
    b"\x02\x00": (4, np.lib.format.read_array_header_2_0),
}
# Where a header is none: numpy parses it as Python, which has a MemoryError for what is nested too deeply.
UNREADABLE = ValueError, SyntaxError, TypeError, IndexError, TokenError, RecursionError, MemoryError
SAVE_PLAIN = "Save plain arrays with numpy.savez."


def check_regular(path: Path, error: type[GemsRayError], kind: str) -> None:
    """Makes sure that a path leads to a file with an end.

    Args:
        path: of the file.
        error: class of the error.
        kind: of file that is expected, for the message.
    Raises:
        GemsRayError: there is nothing, or a folder, a device or a pipe.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise error(f"{path}: the link leads to no file. Mend it, or name the file itself.") from None
        raise error(f"{path}: no such file. Check the path; {kind} was expected.") from None
    except (OSError, ValueError) as problem:  # links in a circle, a name that no file can have
        reason = getattr(problem, "strerror", problem)
        raise error(f"{path}: cannot be read ({reason}). Check the path.") from None
    if stat.S_ISDIR(mode):
        raise error(f"{path}: expected {kind}, found a folder. Name a file.")
    if not stat.S_ISREG(mode):
        raise error(f"{path}: expected {kind}, found a device or a pipe. Name a file.")


def read_arrays(path: Path, names: Collection[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of an npz archive, without unpickling anything; nothing is written to the disk.

    Args:
        path: of the archive.
        names: arrays that are read where they are present.
    Returns:
        the arrays by name, and the names of everything in the archive.
    Raises:
        DatasetError: the file is missing, damaged, or asks for more memory than there is.
    """
    check_regular(path, DatasetError, "an npz file")
    with _reading(f"{path}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that Python 2 wrote, or that hold odd texts
        with path.open("rb") as start:
            magic = start.read(len(HDF5_MAGIC))
        _check_kind(magic, path)
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path)
            chosen = {name: member for name, member in members.items() if name in names}
            headers = {name: _header(archive, name, member, path) for name, member in chosen.items()}
            _check_memory(chosen, path)
            arrays = {name: _read(archive, name, member, headers[name], path) for name, member in chosen.items()}
    return arrays, list(members)


def member_pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> Iterator[bytes]:
    """What a member of an archive holds, unpacked piece by piece.

    Args:
        archive: that holds it.
        member: of the archive.
        path: of the archive, for messages.
    Raises:
        DatasetError: the member is damaged, encrypted, or packed in a way that is not known.
    """
    with _reading(f"{path}: `{member.filename[:SHOWN_NAME]}`"), archive.open(member) as file:
        while piece := file.read(PIECE):
            yield piece


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turns what goes wrong in the reading of an archive into one line."""
    try:
        yield
    except (ValueError, RuntimeError) as error:  # RuntimeError: zipfile's word for encryption and rare compressions
        raise DatasetError(f"{where}: cannot be read: {_line(error)}. {SAVE_PLAIN}") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, KeyError, OverflowError) as error:
        raise DatasetError(f"{where}: damaged or cut off ({_line(error)}). Make it or copy it again.") from None


def _check_kind(magic: bytes, path: Path) -> None:
    if magic.startswith(NPY_MAGIC):
        raise DatasetError(f"{path}: expected an npz archive, found a single array. Save it with numpy.savez.")
    if magic == HDF5_MAGIC:
        raise DatasetError(
            f"{path}: expected an npz archive, found an HDF5 file, as D4RL and Minari have them. Save its five arrays "
            "with numpy.savez."
        )
    if magic and not magic.startswith(ZIP_MAGIC):
        raise DatasetError(f"{path}: not an npz archive. Save the arrays with numpy.savez.")


def _members(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """What is in the archive, by the name of the array."""
    entries = archive.infolist()
    if len(entries) > MOST_MEMBERS:
        raise DatasetError(f"{path}: expected at most {MOST_MEMBERS} arrays, found {len(entries):,}. {SAVE_PLAIN}")
    needed, stored = sum(entry.file_size for entry in entries), path.stat().st_size
    if needed > LARGE and needed > MOST_EXPANSION * stored:
        raise DatasetError(f"{path}: its {stored:,} bytes expand to {needed:,}, as no logged numbers do. {SAVE_PLAIN}")
    members: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in members:
            raise DatasetError(f"{path}: `{name[:SHOWN_NAME]}` stands in the archive twice. {SAVE_PLAIN}")
        members[name] = entry
    return members


def _header(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo, path: Path) -> int:
    """Bytes of the array's header, after it was found to describe what the archive holds."""
    with _reading(f"{path}: `{name}`"), archive.open(member) as file:
        if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
            raise DatasetError(f"{path}: `{name}` is not an array. {SAVE_PLAIN}")
        width, read_header = NPY_VERSIONS.get(file.read(2), (0, None))
        if read_header is None:
            raise DatasetError(f"{path}: `{name}` is not an array of plain numbers. {SAVE_PLAIN}")
        start = file.read(width)
        if (length := int.from_bytes(start, "little")) > LONGEST_HEADER:
            raise DatasetError(
                f"{path}: `{name}` has a header of {length:,} bytes, expected at most {LONGEST_HEADER:,}. {SAVE_PLAIN}"
            )
        try:
            shape, _, dtype = read_header(BytesIO(start + file.read(length)))
        except UNREADABLE as error:
            raise DatasetError(f"{path}: `{name}` has no readable header ({_line(error)}). {SAVE_PLAIN}") from None
        size = file.tell()
    if dtype.itemsize == 0 or any(type(side) is not int for side in shape):  # True counts as an int elsewhere
        raise DatasetError(f"{path}: `{name}` is not an array of plain numbers. {SAVE_PLAIN}")
    if dtype.hasobject:
        raise DatasetError(
            f"{path}: cannot be read: `{name}` holds an object array, which would have to be unpickled. {SAVE_PLAIN}"
        )
    needed, found = math.prod(shape) * dtype.itemsize, member.file_size - size
    if min(shape, default=0) < 0 or needed != found:
        raise DatasetError(
            f"{path}: damaged or cut off (`{name}` promises {needed:,} bytes, shape {_shape(shape)}, and has "
            f"{found:,}). Make it or copy it again."
        )
    if name == "metadata" and needed > LARGEST_TEXT:
        raise DatasetError(f"{path}: `metadata`: expected at most {LARGEST_TEXT:,} bytes, found {needed:,}. Remove it.")
    return size


def _check_memory(members: dict[str, zipfile.ZipInfo], path: Path) -> None:
    needed = sum(member.file_size for member in members.values())
    available = psutil.virtual_memory().available
    if needed > available:
        raise DatasetError(
            f"{path}: its arrays take {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are free. "
            "Make a file with fewer episodes."
        )


def _read(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo, header: int, path: Path) -> np.ndarray:
    with _reading(f"{path}: `{name}`"), archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False, max_header_size=header + len(NPY_MAGIC))


def _shape(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 60 else f"{text[:60]}..."


def _line(error: Exception) -> str:
    """The error on one short line."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."
