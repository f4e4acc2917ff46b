"""Reading datasets from npz, without pickle, and checking them."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from gems_ray.data.schema import OPTIONAL, REQUIRED, Dataset, DatasetMetadata
from gems_ray.errors import DatasetError
from gems_ray.program import command_line

DATASET_FOLDER = Path("offline_datasets")
NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK"  # how an array's file and an archive begin


def find_dataset(environment: str, quality: str, folder: Path = DATASET_FOLDER) -> Path:
    """Where the dataset of an environment lies, or would be written.

    Args:
        environment: environment name.
        quality: random, medium, expert or mixed.
        folder: folder of the datasets.
    """
    foreign = folder / environment / f"{quality}_data_d4rl.npz"  # the other layout in circulation
    ours = folder / f"{environment}_{quality}.npz"
    return foreign if foreign.is_file() and not ours.is_file() else ours


def load_dataset(path: Path) -> Dataset:
    """Reads and checks a dataset.

    Raises:
        DatasetError: the file is missing, damaged, or holds something else than the documented format.
    """
    try:
        with path.open("rb") as start:
            magic = start.read(len(NPY_MAGIC))
        if magic and magic != NPY_MAGIC and not magic.startswith(ZIP_MAGIC):
            raise DatasetError(f"{path}: not an npz archive. Save the arrays with numpy.savez.")
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DatasetError(f"{path}: expected an npz archive, found a single array. Save it with numpy.savez.")
        with file:
            known = [*REQUIRED, *OPTIONAL, "metadata"]
            arrays = {name: file[name] for name in known if name in file.files}
            present = list(file.files)
    except FileNotFoundError:
        raise DatasetError(
            f"{path}: no such dataset. Collect one: "
            f"{command_line('collect', '--environment', 'NAME', '--quality', 'expert')}."
        ) from None
    except IsADirectoryError:
        raise DatasetError(f"{path}: expected an npz file, found a folder.") from None
    except ValueError as error:
        reason = "it holds an object array, which would have to be unpickled" if "Object" in str(error) else str(error)
        raise DatasetError(f"{path}: cannot be read: {reason}. Save plain arrays with numpy.savez.") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError) as error:
        raise DatasetError(f"{path}: damaged or cut off ({error}). Collect it or copy it again.") from None
    except (NotImplementedError, RuntimeError) as error:  # what zipfile says of encryption and of rare compressions
        raise DatasetError(f"{path}: cannot be read: {error}. Save plain arrays with numpy.savez.") from None
    return check_dataset(arrays, str(path), present)


def check_dataset(arrays: Mapping[str, np.ndarray], where: str, present: list[str] | None = None) -> Dataset:
    """Turns arrays by name into a dataset.

    Args:
        arrays: the documented arrays, and `metadata` as JSON text if there is any.
        where: file name for messages.
        present: all names in the file, for messages.
    Raises:
        DatasetError: an array is missing or is not as documented.
    """
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DatasetError(f"{where}: `{name}` is not an array. Save plain arrays with numpy.savez.")
    missing = [name for name in REQUIRED if name not in arrays]
    if missing:
        found = ", ".join(present or arrays) or "nothing"
        raise DatasetError(f"{where}: `{missing[0]}` is missing. Expected {', '.join(REQUIRED)}; found {found}.")
    rows = len(arrays["observations"]) if arrays["observations"].ndim else 0
    if rows == 0:
        raise DatasetError(f"{where}: `observations` has no rows. Expected at least one transition.")
    checked = {
        name: _checked(arrays[name], (rows, *shape), dtype, f"{where}: `{name}`")
        for name, (shape, dtype) in {**REQUIRED, **OPTIONAL}.items()
        if name in arrays
    }
    if not np.any(checked.get("timeouts")):
        checked.pop("timeouts", None)  # says nothing, and many files of D4RL's layout have it
    return Dataset(**checked, metadata=_metadata(arrays.get("metadata"), where))


def _checked(array: np.ndarray, shape: tuple[int, ...], dtype: type[np.generic], where: str) -> np.ndarray:
    """The array in its documented dtype."""
    if array.shape != shape:
        raise DatasetError(f"{where}: expected shape {shape}, found {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: expected {np.dtype(dtype)}, found {array.dtype}.")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array.astype(dtype, copy=False))
    # A whole-array reduction finds NaN and infinity without a temporary as large as the data.
    if dtype is np.float32 and not np.isfinite(converted.sum(dtype=np.float64)):
        wrong = np.argwhere(~np.isfinite(converted))
        raise DatasetError(
            f"{where}: {len(wrong)} values are NaN or infinite in float32, the first in row {wrong[0][0]}. "
            "Remove those episodes from the file."
        )
    if dtype is not np.float32 and array.dtype != dtype and not np.array_equal(converted, array):
        expected = "0 and 1 or bool" if dtype is np.bool_ else f"whole numbers of {np.dtype(dtype)}"
        raise DatasetError(f"{where}: expected {expected}, found other values.")
    return converted


def _metadata(text: np.ndarray | None, where: str) -> DatasetMetadata | None:
    if text is None:
        return None
    try:
        return DatasetMetadata.model_validate_json(str(text))
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"]) or "JSON"
        raise DatasetError(f"{where}: `metadata` is not readable at `{key}`: {problem['msg']}.") from None
