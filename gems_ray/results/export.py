"""The tables of a run as files, whatever kind of run it is."""

from pathlib import Path

from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results import search, tables


def write_tables(run: RunFolder, folder: Path) -> list[Path]:
    """Writes the tables of a grid or a search into a folder; returns their paths."""
    if run.experiment().search:
        return [*search.export(run, folder), tables.export_cells(run, folder)]
    return tables.export(run, folder)
