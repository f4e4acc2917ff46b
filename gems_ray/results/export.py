"""The tables of runs as files."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from gems_ray.experiments.run_folder import RunFolder
from gems_ray.files import write_text_atomically
from gems_ray.results import search, tables
from gems_ray.results.cells import rounded
from gems_ray.results.comparison import Comparison
from gems_ray.results.comparison_tables import comparison_tables
from gems_ray.results.curves import curves_frame
from gems_ray.results.facts import facts
from gems_ray.results.format_names import STANDARD, SUFFIXES, Format
from gems_ray.results.formats import write_excel, write_long_csv, write_parquet
from gems_ray.results.text_table import to_html, to_latex, to_markdown


def write_tables(run: RunFolder, folder: Path) -> list[Path]:
    """Writes the tables of a grid or a search into a folder, as a run does when it ends; returns their paths."""
    if run.experiment().search:
        return [*search.export(run, folder), tables.export_cells(run, folder)]
    return tables.export(run, folder)


def export_runs(
    runs: Sequence[RunFolder],
    folder: Path,
    formats: Sequence[Format] = STANDARD,
    comparison: Comparison | None = None,
) -> list[Path]:
    """Writes everything that can be read from one or many runs: cells, learning curves, results, comparison.

    One run has its own result table too, or its trials and candidates. The learning curves of all cells are in the
    files of CSV and Parquet.

    Args:
        runs: that are read.
        folder: of the files.
        formats: of the files.
        comparison: of the runs, if it has been made already.
    Returns:
        the paths of the files.
    Raises:
        RunFolderError: a file of a run is damaged.
        ConfigError: the package for a format is not installed.
    """
    comparison = Comparison(runs) if comparison is None else comparison
    cells, described = comparison.cells, facts(runs, comparison.cells)
    compared = comparison_tables(comparison, described)
    frames = {"cells": rounded(cells), "comparison": _rounded(comparison.compared)}
    if not comparison.overall.empty:
        frames["overall"] = _rounded(comparison.overall)
    shown, texts = compared, {"comparison.md": to_markdown(compared)}
    if len(runs) == 1:
        (run,) = runs
        if run.experiment().search:
            frames |= search.frames(run)
            shown = [*search.text_tables(run), *compared]
            texts["table.md"] = search.to_markdown(run, described)
        else:
            table = tables.result_frame(run, cells)
            frames["table"] = table.round(3)
            shown = [*tables.text_tables(table), *compared]
            texts["table.md"] = tables.to_markdown(table, described)
    title = f"Results of {', '.join(run.path.resolve().name for run in runs)}"
    texts |= {"tables.tex": to_latex(shown), "tables.html": to_html(title, shown)}
    return _write(
        folder,
        formats,
        frames,
        texts,
        curves_frame(runs, cells) if {Format.CSV, Format.PARQUET} & set(formats) else None,
    )


def _write(
    folder: Path,
    formats: Sequence[Format],
    frames: dict[str, pd.DataFrame],
    texts: dict[str, str],
    curves: pd.DataFrame | None,
) -> list[Path]:
    """Writes the files of the formats that were chosen; returns their paths."""
    suffixes = {SUFFIXES.get(chosen) for chosen in formats}
    texts = {**{f"{name}.csv": frame.to_csv(index=False) for name, frame in frames.items()}, **texts}
    paths = []
    for name, text in texts.items():
        if Path(name).suffix in suffixes:
            write_text_atomically(folder / name, text)
            paths.append(folder / name)
    if curves is not None and Format.CSV in formats:
        write_long_csv(folder / "curves.csv", curves)
        paths.append(folder / "curves.csv")
    if curves is not None and Format.PARQUET in formats:
        for name, frame in {**frames, "curves": curves}.items():
            write_parquet(folder / f"{name}.parquet", frame)
            paths.append(folder / f"{name}.parquet")
    if Format.EXCEL in formats:
        write_excel(folder / "tables.xlsx", frames)
        paths.append(folder / "tables.xlsx")
    return paths


def _rounded(frame: pd.DataFrame) -> pd.DataFrame:
    """With three decimals, except p-values, which may be smaller than that."""
    return frame.round({name: 3 for name in frame.select_dtypes("number") if name != "p_value"})
