"""The reports of a run's cells over the updates, as one frame."""

import pandas as pd

from gems_ray.experiments.run_folder import RunFolder

OF_CELL = ("environment", "algorithm", "seed")


def metrics_frame(run: RunFolder) -> pd.DataFrame:
    """One row per cell and evaluation: the cell, then what metrics.csv holds. Empty where nothing was evaluated."""
    rows = []
    for cell in run.cells():
        facts = {"cell": cell.path.name, **{name: getattr(cell.description, name) for name in OF_CELL}}
        rows += [{**facts, **report} for report in cell.metrics()]
    return pd.DataFrame(rows, columns=None if rows else ["cell", *OF_CELL])
