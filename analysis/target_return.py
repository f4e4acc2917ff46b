"""Return reached against return asked: Decision Transformers of a run, asked for other returns, as a Markdown table.

    python analysis/target_return.py runs/comparison_mixed_decision_transformer --asked 100 200 300 400

The last checkpoint of every cell plays the test users once for every return that is asked for. The table shows means
over seeds and their deviation.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

import gems_ray


def returns_reached(folder: Path, asked: list[float], users: int) -> pd.DataFrame:
    """One row per cell and return asked: environment, asked, reached (clicks per episode).

    Args:
        folder: of a run with cells of the Decision Transformer, in shipped worlds.
        asked: clicks per episode.
        users: simulated users of each evaluation.
    Raises:
        gems_ray.GemsRayError: the folder is no run, or a cell has no checkpoint.
    """
    run, rows = gems_ray.open_run(folder), []
    cells = run.cells()
    for cell in cells[cells["algorithm"] == "decision_transformer"].to_dict("records"):
        world = gems_ray.load_world(run.experiment.world(cell["environment"]))
        policy = run.policy(cell["cell"], "last")
        for clicks in asked:
            policy.target_return = clicks
            reached = gems_ray.evaluate(policy, world, users).return_mean
            rows.append({"environment": cell["environment"], "asked": clicks, "reached": reached})
            print(f"{cell['cell']}: asked {clicks:g}, reached {reached:.1f}", file=sys.stderr)
    return pd.DataFrame(rows, columns=["environment", "asked", "reached"])


def to_markdown(returns: pd.DataFrame) -> str:
    """A row per return asked and a column per environment, mean ± deviation over seeds."""
    grouped = returns.groupby(["asked", "environment"])["reached"].agg(["mean", "std"])
    cells = (grouped["mean"].map("{:.1f}".format) + grouped["std"].map(" ± {:.1f}".format)).unstack()
    lines = [["asked", *cells.columns], ["---:"] * (len(cells.columns) + 1)]
    lines += [[f"{asked:g}", *row] for asked, row in zip(cells.index, cells.to_numpy(), strict=True)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Plays the policies of a run and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--asked", nargs="+", type=float, default=[100, 200, 300, 400], help="clicks per episode")
    parser.add_argument("--users", type=int, default=200, help="of each evaluation [default: %(default)s]")
    arguments = parser.parse_args()
    try:
        print(to_markdown(returns_reached(arguments.run, arguments.asked, arguments.users)), end="")
    except gems_ray.GemsRayError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
