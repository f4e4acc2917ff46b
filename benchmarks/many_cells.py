"""What hundreds of trivial cells cost: time per cell and memory of the driver, in the first part of the run and later.

    python benchmarks/many_cells.py [--cells 500]

Both should stay flat: what grows with the number of cells decides how large a run can be.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

SCRIPT = Path(__file__).parents[1] / "run_tune.py"
PARTS = 10
LOOK_EVERY_S = 0.5


def experiment(cells: int) -> dict[str, object]:
    """A grid of so many cells, which train for one update."""
    return {
        "environment": "diffuse_mix",
        "algorithm": "td3_bc",
        "seed": list(range(cells)),
        "settings": {"td3_bc": {"hidden_sizes": [16]}},
        "dataset": {"quality": "random", "episodes": 2},
        "training": {"max_timesteps": 1, "evaluation_interval": 1},
        "evaluation": {"validation_users": 2, "test_users": 2},
    }


def main() -> None:
    """Prints a line for every part of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    cells = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "many.yaml").write_text(json.dumps(experiment(cells)))
        done = folder / "runs" / "many" / "cells"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        begin = time.perf_counter()
        line = [sys.executable, SCRIPT, "grid", "many.yaml"]
        with (folder / "output.txt").open("w") as output:
            run = subprocess.Popen(line, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        driver, before, first = psutil.Process(run.pid), (0, 0.0), 0.0
        print("cells  ms per cell  driver's memory (USS, MB)")
        while run.poll() is None:
            time.sleep(LOOK_EVERY_S)
            ended, now = sum(1 for _ in done.glob("*/result.json")), time.perf_counter() - begin
            if ended and not first:
                first, before = now, (ended, now)
            if ended >= before[0] + cells // PARTS and run.poll() is None:
                speed = 1000 * (now - before[1]) / (ended - before[0])
                print(f"{ended:5}  {speed:11.0f}  {driver.memory_full_info().uss / 1e6:25.0f}", flush=True)
                before = (ended, now)
        seconds = time.perf_counter() - begin
        if run.returncode:
            sys.exit((folder / "output.txt").read_text())
    print(f"{cells} cells in {seconds:.0f} s, the first one after {first:.0f} s")


if __name__ == "__main__":
    main()
