"""How long `export` takes, and how much memory, on a run of 1,000 cells with 1,000 reports each.

    python benchmarks/export.py [--cells 1000] [--rows 1000] [--format csv ...]

The goals on 2 idle cores are 20 s and 2 GB for each format. The cells were never trained: their records are written as
a run writes them. Where the machine does other work too, the seconds of a core tell more.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import run_folders
from startup import SCRIPT

from gems_ray import metrics
from gems_ray.experiments.run_folder import RunFolder

FORMATS = ("csv", "parquet", "markdown", "latex", "html", "excel")


def write_curves(run: RunFolder, rows: int) -> None:
    """Gives every cell of a run so many reports, all at once: a line each would take half an hour."""
    rng = np.random.default_rng(0)
    for folder in run.cells():
        names = list(folder.metrics()[0])
        numbers = rng.normal(100, 10, size=(rows, len(names)))
        numbers[:, names.index(metrics.STEP)] = np.arange(rows)
        lines = [",".join(repr(int(x) if x == int(x) else x) for x in row) for row in numbers.tolist()]
        (folder.path / "metrics.csv").write_text("\n".join([",".join(names), *lines, ""]), encoding="utf-8")


def measure(*arguments: str) -> tuple[float, float, float]:
    """Seconds, seconds of a core, and peak memory in 10^9 bytes of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, str(SCRIPT), *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(arguments)}: exit status {status}.")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    """Prints seconds, memory and the size of what was written, for every format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_folders.ROWS = 2
        path = run_folders.make_run(folder, arguments.cells)
        write_curves(RunFolder.open(path), arguments.rows)
        for form in arguments.format:
            output = folder / form
            seconds, core, memory = measure("export", str(path), "--format", form, "--output", str(output))
            size = sum(file.stat().st_size for file in output.iterdir()) / 1e6
            print(
                f"{form:9} {seconds:6.1f} s {core:6.1f} s of a core {memory:6.2f} GB {size:8.1f} MB written", flush=True
            )


if __name__ == "__main__":
    main()
