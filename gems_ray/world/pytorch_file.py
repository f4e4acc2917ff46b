"""PyTorch files of strangers: tensors and plain values, measured before they are made, and nothing that could run."""

import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from gems_ray.archive import check_regular
from gems_ray.errors import WorldError

LARGEST = 2_000_000_000  # bytes of a checkpoint; the published ones have 3 to 6 million
OLD_PICKLES = 5  # that begin a file of PyTorch before 1.6: magic number, version, machine, content, storages
# All that tensors and plain values ask for. PyTorch allows more without unpickling, and some of it makes gigabytes of a
# number, such as `bytearray`.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter|defaultdict)|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|"
    r"torch (\w+Storage|Size|device|b?float\d+|u?int\d+|bool|complex\d+)|(__builtin__|builtins) (set|complex)"
)
KINDS = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
TENSORS_ALONE = 'Save its tensors alone: torch.save({"state_dict": model.state_dict()}, PATH).'


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], Mapping[str, object]]:
    """The tensors of a PyTorch file, and its hyper-parameters where there are any; nothing is run.

    Raises:
        WorldError: the file is missing or damaged, or asks for more than tensors and plain values.
    """
    check_regular(path, WorldError, "a checkpoint")
    size = _check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong is said in one line of our own
            data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the file makes of the reader
        raise WorldError(f"{path}: {_reason(error)}") from None
    state = data.get("state_dict", data) if isinstance(data, dict) else None
    if not isinstance(state, dict) or not state:
        raise WorldError(f"{path}: expected a checkpoint with a `state_dict`, found {type(data).__name__}.")
    tensors = {str(key): value for key, value in state.items() if isinstance(value, Tensor)}
    _check_tensors(path, tensors, size)
    facts = data.get("hyper_parameters")
    return tensors, facts if isinstance(facts, dict) else {}


def _check_file(path: Path) -> int:
    """Bytes of what is in the file, after all of it was found whole and plain."""
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(2)
        if not magic.startswith((b"PK", b"\x80")):  # an archive, or the pickle of old versions
            raise WorldError(f"{path}: not a readable PyTorch file. Expected a checkpoint that torch.save wrote.")
        file.seek(0)
        try:
            if magic != b"PK":
                _check_bytes(path, size)
                _check_names(path, file, OLD_PICKLES)
                return size
            with zipfile.ZipFile(file) as archive:
                size = sum(member.file_size for member in archive.infolist())
                _check_bytes(path, size)
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(f"the checksum of {damaged[:100]!r} is wrong")
                for member in archive.infolist():
                    if member.filename.lower().endswith(".pkl"):
                        _check_names(path, BytesIO(archive.read(member)), 1)
        except WorldError:
            raise
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:150].rstrip(".")
            raise WorldError(f"{path}: damaged or cut off ({reason}). Copy it again.") from None
        except Exception as error:  # whatever the pickle makes of its reader
            raise WorldError(f"{path}: {_reason(error)}") from None
    return size


def _check_bytes(path: Path, size: int) -> None:
    if size > LARGEST:
        raise WorldError(f"{path}: expected at most {LARGEST:,} bytes, found {size:,}. It is no checkpoint of GeMS.")


def _check_names(path: Path, file: IO[bytes], pickles: int) -> None:
    """Reads the commands of pickles without following them, and compares what they ask for with what is plain."""
    for name in _names(file, pickles):
        if not PLAIN.fullmatch(name):
            shown = repr(name.replace(" ", "."))[1:-1][:100]
            raise WorldError(
                f"{path}: asks for `{shown}`, which is neither a plain tensor nor a plain value: making it could run "
                f"anything, or fill the memory. {TENSORS_ALONE}"
            )


def _names(file: IO[bytes], pickles: int) -> Iterator[str]:
    for _ in range(pickles):
        for command, argument, _ in pickletools.genops(file):
            if command.name in ("GLOBAL", "INST"):
                yield str(argument)


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], size: int) -> None:
    """Makes sure that no tensor is more than the bytes that the file holds of it."""
    for key, value in tensors.items():
        if value.layout != torch.strided or value.is_nested or value.device.type != "cpu" or value.dtype not in KINDS:
            layout, kind = (str(what).removeprefix("torch.") for what in (value.layout, value.dtype))
            raise WorldError(
                f"{path}: `{key}`: expected a plain tensor of numbers, found {layout} {kind} on {value.device.type}. "
                "Save it dense, on the CPU, in single precision."
            )
        stored = value.untyped_storage().nbytes()
        if value.numel() * value.itemsize > stored:
            raise WorldError(
                f"{path}: `{key}`: expected {tuple(value.shape)} numbers, found {stored:,} bytes that stand for them "
                "many times. Save it with .contiguous()."
            )
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors.values()}
    if sum(storages.values()) > size:
        promised = f"{sum(storages.values()):,} bytes"
        raise WorldError(f"{path}: damaged (its tensors promise {promised}, and it has {size:,}). Copy it again.")


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "weights_only" in text or "Weights only" in text:
        detail = text.partition("error:")[2].strip() or text
        return f"holds more than tensors and plain values ({detail[:150]}). Save its tensors alone, or copy it again."
    return f"not a readable PyTorch file ({text[:150].rstrip('.') or type(error).__name__}). Copy it again."
