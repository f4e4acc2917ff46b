"""Reads the folder of a run: its table, its best cell, and how the return of that cell developed.

Run it with `python examples/read_results.py runs/demo`. It needs neither Ray nor torch, so it also works on a laptop to
which the folder was copied.
"""

import argparse

import gems_ray


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="folder of a run")
    arguments = parser.parse_args()

    run = gems_ray.open_run(arguments.run)
    table = run.table()
    print(table[["environment", "algorithm", "last_mean", "last_std", "last_score", "seeds"]].to_string(index=False))

    cells = run.cells()
    best = cells.loc[cells["last_return"].idxmax()]
    print(f"\nBest cell: {best['cell']}, {best['last_return']:.1f} clicks per episode")

    metrics = run.metrics()
    curve = metrics[metrics["cell"] == best["cell"]]
    print(curve[["updates", "eval/return_mean", "train/cloning_error"]].to_string(index=False))


if __name__ == "__main__":
    main()
