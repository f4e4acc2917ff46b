"""Learning curves of runs: mean and deviation over seeds of the return on the validation users, as CSV.

    python analysis/learning_curves.py runs/grid runs/comparison --output curves.csv

One row per run, environment, algorithm and evaluation, for any plotting program. `--metric` chooses another column
of metrics.csv, for example train/q_policy.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import gems_ray


def learning_curves(folders: list[Path], metric: str) -> pd.DataFrame:
    """Mean, deviation and number of seeds of a metric, after so many updates.

    Args:
        folders: of runs.
        metric: a column of metrics.csv.
    Raises:
        gems_ray.GemsRayError: a folder is no run, or none of its cells has the metric.
    """
    curves = []
    for folder in folders:
        reports = gems_ray.open_run(folder).metrics()
        if metric not in reports:
            raise gems_ray.GemsRayError(f"{folder}: no cell has `{metric}`. Found: {', '.join(reports.columns)}.")
        reports.insert(0, "run", folder.name)
        curves.append(reports)
    grouped = pd.concat(curves).groupby(["run", "environment", "algorithm", "updates"])[metric]
    return grouped.agg(["mean", "std", "count"]).reset_index()


def main() -> None:
    """Reads the runs and writes the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--metric", default="eval/return_mean", help="column of metrics.csv [default: %(default)s]")
    parser.add_argument("--output", type=Path, help="CSV file [default: standard output]")
    arguments = parser.parse_args()
    try:
        curves = learning_curves(arguments.runs, arguments.metric)
    except gems_ray.GemsRayError as error:
        sys.exit(f"error: {error}")
    curves.to_csv(arguments.output or sys.stdout, index=False)


if __name__ == "__main__":
    main()
