"""The learning curves of all cells of one or many runs, as one long table."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from gems_ray.experiments.cell_folder import METRICS, CellFolder
from gems_ray.experiments.records import Report
from gems_ray.experiments.run_folder import RunFolder
from gems_ray.metrics import STEP
from gems_ray.results.cells import KEYS, cells_frame, run_names, setting_columns

LARGEST_STEP = 2**63 - 1  # a file with more is damaged


def curves_frame(runs: Sequence[RunFolder], cells: pd.DataFrame | None = None) -> pd.DataFrame:
    """One row per report of every cell: `run`, `cell`, `environment`, `algorithm`, `seed`, then the metrics.

    Behind `seed` stand the settings in which the cells differ, as in `cells_frame`. The first metric is `updates`; all
    have their names in gems_ray/metrics.py, and NaN stands where one was not measured. Of lines that stand twice for
    the same updates, the last one counts; lines that were cut off are left out.

    Args:
        runs: that are read.
        cells: their `cells_frame`, if it has been read already.
    Returns:
        the rows of a cell in the order of their updates, the cells in the order of their names, run by run.
    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    cells = cells_frame(*runs) if cells is None else cells
    names = run_names(runs)
    known = cells if "run" in cells else cells.assign(run=names[0] if names else None)
    first = ["run", "cell", *KEYS, *setting_columns(cells)]
    of_cell = {(row["run"], row["cell"]): row for row in known[first].to_dict("records")}
    folders = [(name, folder) for name, run in zip(names, runs, strict=True) for folder in run.cells()]
    with ThreadPoolExecutor() as pool:  # Arrow reads without Python's lock
        read = list(pool.map(_read, [folder for _, folder in folders]))
    tables = []
    for (name, folder), table in zip(folders, read, strict=True):
        row = of_cell.get((name, folder.path.name))
        if table.num_rows and row is not None:  # a cell that has begun since has none
            keys = {key: pa.repeat(_scalar(value), table.num_rows) for key, value in row.items()}
            tables.append(pa.table({**keys, **dict(zip(table.column_names, table.columns, strict=True))}))
    if not tables:
        return pd.DataFrame(columns=[*first, STEP])
    return pa.concat_tables(tables, promote_options="permissive").to_pandas(self_destruct=True)


def metrics_frame(run: RunFolder) -> pd.DataFrame:
    """The curves of one run, without the column `run`.

    Raises:
        RunFolderError: a file of the folder is damaged.
    """
    return curves_frame([run]).drop(columns="run")


def _scalar(value: Any) -> pa.Scalar:
    """A value of a key; NaN is the missing value of a setting."""
    return pa.scalar(None if value != value else value)


def _read(folder: CellFolder) -> pa.Table:
    """The reports of a cell: whole numbers for the updates, numbers or nulls for everything else."""
    try:
        table = _read_fast(folder)
    except (pa.ArrowException, ValueError, OSError):  # torn, damaged, missing: line by line
        reports = [report for report in folder.metrics() if abs(report[STEP]) <= LARGEST_STEP]
        names = list(dict.fromkeys(name for report in reports for name in report))
        types = {name: pa.int64() if name == STEP else pa.float64() for name in names}
        table = pa.table({name: _column(reports, name, types[name]) for name in names})
    return _in_order(table) if table.num_rows else table


def _column(reports: Sequence[Report], name: str, kind: pa.DataType) -> pa.Array:
    values = (report.get(name) for report in reports)
    return pa.array([float(v) if v is not None and kind == pa.float64() else v for v in values], kind)


def _read_fast(folder: CellFolder) -> pa.Table:
    """The same for a file whose lines are all whole.

    Raises:
        pa.ArrowInvalid: a line is not, or holds something else than numbers.
    """
    path = folder.path / METRICS
    with path.open("rb") as file:
        names = file.readline().decode("utf-8", errors="replace").rstrip("\r\n").split(",")
        file.seek(-1, 2)
        if STEP not in names or len(set(names)) < len(names) or file.read(1) != b"\n":
            raise pa.ArrowInvalid("not a file of reports, or one whose last line is not complete")
    types = {name: pa.int64() if name == STEP else pa.float64() for name in names}
    table = pa.csv.read_csv(
        path,
        read_options=pa.csv.ReadOptions(use_threads=False),
        parse_options=pa.csv.ParseOptions(quote_char=False),
        convert_options=pa.csv.ConvertOptions(column_types=types, null_values=["", "nan", "NaN"]),
    )
    if table[STEP].null_count:
        raise pa.ArrowInvalid("a line without its updates")
    columns = {name: _finite(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    return pa.table(columns)


def _finite(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column without infinities, which are no measurements."""
    if not pa.types.is_floating(column.type):
        return column
    values = column.to_numpy()
    if not np.isinf(values).any():
        return column
    return pa.array(np.where(np.isinf(values), np.nan, values), from_pandas=True)


def _in_order(table: pa.Table) -> pa.Table:
    """The rows by their updates, the last one of those with the same."""
    updates = table[STEP].to_numpy()
    if (np.diff(updates) > 0).all():
        return table
    _, last = np.unique(updates[::-1], return_index=True)
    return table.take(len(updates) - 1 - last)
