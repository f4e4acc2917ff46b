"""Reading datasets from npz, without pickle, and checking them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gems_ray.archive import SHOWN_NAME, read_arrays
from gems_ray.data.metadata import read_metadata
from gems_ray.data.schema import OPTIONAL, REQUIRED, Dataset
from gems_ray.errors import DatasetError
from gems_ray.program import command_line

DATASET_FOLDER = Path("offline_datasets")
SHOWN_NAMES = 12  # of arrays that nobody asked for
LARGEST = 1e6  # of any value: beliefs, latents and clicks are far below, and squares of them stay finite


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
    if not (path.exists() or path.is_symlink()):
        raise DatasetError(
            f"{path}: no such dataset. Collect one: "
            f"{command_line('collect', '--environment', 'NAME', '--quality', 'expert')}."
        )
    arrays, present = read_arrays(path, [*REQUIRED, *OPTIONAL, "metadata"])
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
        names = [name[:SHOWN_NAME] for name in present or arrays]
        found = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "") or "nothing"
        raise DatasetError(f"{where}: `{missing[0]}` is missing. Expected {', '.join(REQUIRED)}; found {found}.")
    rows = len(arrays["observations"]) if arrays["observations"].ndim else 0
    if rows == 0:
        raise DatasetError(f"{where}: `observations` has no rows. Expected at least one transition.")
    checked = {
        name: checked_array(arrays[name], (rows, *shape), dtype, f"{where}: `{name}`")
        for name, (shape, dtype) in {**REQUIRED, **OPTIONAL}.items()
        if name in arrays
    }
    if not np.any(checked.get("timeouts")):
        checked.pop("timeouts", None)  # says nothing, and many files of D4RL's layout have it
    return Dataset(**checked, metadata=read_metadata(arrays.get("metadata"), checked, where))


def checked_array(array: np.ndarray, shape: tuple[int, ...], dtype: type[np.generic], where: str) -> np.ndarray:
    """An array in its documented dtype.

    Args:
        array: as it stands in the file.
        shape: that it must have.
        dtype: that it is turned into.
        where: file and name, for messages.
    Raises:
        DatasetError: it has another shape, another kind of values, or values that are not finite.
    """
    if array.shape != shape:
        raise DatasetError(f"{where}: expected shape {shape}, found {array.shape}.")
    if array.dtype.kind not in "biuf":
        raise DatasetError(f"{where}: expected {np.dtype(dtype)}, found {array.dtype}.")
    with np.errstate(over="ignore", invalid="ignore"):
        converted = np.ascontiguousarray(array.astype(dtype, copy=False))
        # A whole-array reduction finds NaN and infinity without a temporary as large as the data.
        finite = dtype is not np.float32 or np.isfinite(converted.sum(dtype=np.float64))
    if not finite:
        wrong = np.argwhere(~np.isfinite(converted))
        raise DatasetError(
            f"{where}: {len(wrong)} values are NaN or infinite in float32, the first in row {wrong[0][0]}. "
            "Remove those episodes from the file."
        )
    if dtype is np.float32 and (largest := max(-float(converted.min()), float(converted.max()))) > LARGEST:
        raise DatasetError(
            f"{where}: expected values up to {LARGEST:,.0f}, found {largest:.4g}. Remove those episodes from the file."
        )
    if dtype is not np.float32 and array.dtype != dtype and not np.array_equal(converted, array):
        expected = "0 and 1 or bool" if dtype is np.bool_ else f"whole numbers of {np.dtype(dtype)}"
        raise DatasetError(f"{where}: expected {expected}, found other values.")
    return converted
