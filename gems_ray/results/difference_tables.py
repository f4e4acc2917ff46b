"""Two runs against each other, as tables that people read."""

import math

import pandas as pd

from gems_ray.experiments.run_folder import RunFolder
from gems_ray.results.comparison import CHECKPOINTS
from gems_ray.results.comparison_tables import TITLES
from gems_ray.results.differences import input_differences, only_in, repeated_cells, result_differences
from gems_ray.results.numbers import interval, p_value, spread
from gems_ray.results.text_table import TextTable

NOTES = (
    "A, B: clicks per episode of the test users, mean ± deviation over seeds.",
    "B - A: difference with its 95% bootstrap interval, widened for few seeds.",
    "p: Welch's test after Holm's correction for the rows of this table.",
    "better: which has the higher return; neither, if p is above 0.05.",
    "B wins: how often a run of B has a higher return than a run of A.",
)


def difference_tables(one: RunFolder, other: RunFolder) -> list[TextTable]:
    """What differs between two runs: configuration, versions, data, and results, last and best apart.

    Raises:
        RunFolderError: a file of a folder is damaged.
    """
    inputs = input_differences(one, other)
    rows = [[row["part"], row["name"], row["a"], row["b"]] for row in inputs.to_dict("records")]
    notes = [] if rows else ["Nothing: experiment, versions, datasets and reference policies are the same."]
    header = ["part", "name", "A", "B"] if rows else ()
    tables = [TextTable("What differs", header, rows, 4, notes)]
    results = result_differences(one, other)
    if not results.empty:
        tables += [_results(results[results["checkpoint"] == checkpoint], checkpoint) for checkpoint in CHECKPOINTS]
    return [*tables, TextTable("Cells", (), (), notes=_cell_notes(one, other, results))]


def _results(frame: pd.DataFrame, checkpoint: str) -> TextTable:
    has_settings = bool((frame["settings"] != "").any())
    rows = [
        [
            row["environment"],
            row["algorithm"],
            *([row["settings"]] if has_settings else []),
            spread(row["a_mean"], row["a_std"]),
            spread(row["b_mean"], row["b_std"]),
            "-" if math.isnan(row["difference"]) else f"{row['difference']:+.1f}",
            interval(row["low"], row["high"]),
            p_value(row["p_value"]),
            row["better"],
            "" if math.isnan(row["b_is_better"]) else f"{row['b_is_better']:.2f}",
            f"{row['a_seeds']}, {row['b_seeds']}",
        ]
        for row in frame.to_dict("records")
    ]
    words = ["environment", "algorithm", *(["settings"] if has_settings else [])]
    numbers = ["A", "B", "B - A", "95%", "p", "better", "B wins", "seeds"]
    return TextTable(TITLES[checkpoint], [*words, *numbers], rows, len(words), [*NOTES, _seeds(frame)])


def _seeds(frame: pd.DataFrame) -> str:
    """How many seeds stand behind the numbers of each run."""
    parts = []
    for name in ("a", "b"):
        fewest, most = frame[f"{name}_seeds"].min(), frame[f"{name}_seeds"].max()
        parts.append(f"{fewest} of {name.upper()}" if fewest == most else f"{fewest} to {most} of {name.upper()}")
    return f"Seeds: {', '.join(parts)}."


def _cell_notes(one: RunFolder, other: RunFolder, results: pd.DataFrame) -> list[str]:
    nothing = "Nothing to compare: no environment and algorithm is in both with the same settings."
    notes = [] if len(results) else [nothing]
    for name, missing in (("A", only_in(one, other)), ("B", only_in(other, one))):
        if missing:
            notes.append(f"Only in {name}: {'; '.join(missing)}.")
    count, different = repeated_cells(one, other)
    if count:
        same = "all of them with the same returns" if not different else f"other returns in {', '.join(different)}"
        notes.append(f"{count} cells of one name were tested in both, {same}.")
    return notes
