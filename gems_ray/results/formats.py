"""Data frames as files: CSV, Parquet, Excel."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gems_ray.errors import ConfigError
from gems_ray.files import atomic_path
from gems_ray.results.text import one_line

SHEET_ROWS = 1_048_576  # of Excel, the header among them
CHUNK = 100_000  # rows that are turned into text at once


def write_long_csv(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame of many rows, its numbers with seven digits: in this precision they were computed.

    Args:
        path: of the file.
        frame: of texts and numbers.
    """
    schema = _schema(frame)
    with atomic_path(path) as partial, pa.csv.CSVWriter(partial, schema) as writer:
        for start in range(0, len(frame), CHUNK):
            chunk = frame.iloc[start : start + CHUNK]
            writer.write_table(pa.Table.from_pandas(chunk, schema, preserve_index=False, safe=False))


def write_parquet(path: Path, frame: pd.DataFrame) -> None:
    """Writes a frame as Parquet, its numbers as they are."""
    table = pa.Table.from_pandas(frame.apply(_of_one_kind), preserve_index=False)
    with atomic_path(path) as partial:
        pa.parquet.write_table(table, partial)


def write_excel(path: Path, frames: Mapping[str, pd.DataFrame]) -> None:
    """Writes frames as the sheets of a file of Excel; texts are never formulas.

    Raises:
        ConfigError: openpyxl is not installed, or a sheet would have too many rows.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
    except ImportError:
        raise ConfigError(
            "format excel: openpyxl is not installed. `pip install 'gems_ray[excel]'` brings it."
        ) from None
    book = Workbook(write_only=True)
    for name, frame in frames.items():
        if len(frame) >= SHEET_ROWS:
            raise ConfigError(
                f"format excel: {name} has {len(frame):,} rows, a sheet holds {SHEET_ROWS - 1:,}. Choose csv."
            )
        sheet = book.create_sheet(name)
        sheet.freeze_panes = "A2"
        for row in [list(frame.columns), *frame.astype(object).where(frame.notna(), None).to_numpy().tolist()]:
            cells = []
            for value in row:
                cell = WriteOnlyCell(sheet, one_line(value) if isinstance(value, str) else value)
                if isinstance(value, str):
                    cell.data_type = "s"  # `=1+1` is a name, and no formula
                cells.append(cell)
            sheet.append(cells)
    with atomic_path(path) as partial:
        book.save(partial)


def _of_one_kind(column: pd.Series) -> pd.Series:
    """A column whose values are of several kinds, such as `auto` and 0.5, as texts."""
    mixed = pd.api.types.infer_dtype(column, skipna=True) in ("mixed", "mixed-integer")
    return column.map(str, na_action="ignore") if mixed else column


def _schema(frame: pd.DataFrame) -> pa.Schema:
    # A column of truth values with gaps is one of objects to pandas: its type is seen from its values.
    known = {name: frame[[name]].dropna() if frame[name].dtype == object else frame.iloc[:0][[name]] for name in frame}
    types = {name: pa.Schema.from_pandas(column, preserve_index=False).types[0] for name, column in known.items()}
    return pa.schema([(name, pa.float32() if kind == pa.float64() else kind) for name, kind in types.items()])
