"""Private memory of a trial on a large dataset and on a small one, four trials at once.

    python benchmarks/memory.py [--transitions 1000000] [--algorithm td3_bc]

The arrays lie in shared memory once per node; a trial may hold at most 60 MB more of its own on 1,000,000 transitions
(296 MB) than on 1,000. USS: memory that would be free if the process ended.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

SCRIPT = Path(__file__).parents[1] / "run_tune.py"
TRIALS = 4
SETTLED_ROWS = 6  # evaluations of every trial before anything is measured
MB = 1e6


def write_dataset(path: Path, transitions: int) -> None:
    """A file in the plain format: five arrays, episodes of 100 steps."""
    rng = np.random.default_rng(0)
    np.savez(
        path,
        observations=rng.normal(size=(transitions, 20)).astype(np.float32),
        actions=rng.normal(size=(transitions, 32)).astype(np.float32),
        rewards=rng.integers(0, 5, size=transitions).astype(np.float32),
        next_observations=rng.normal(size=(transitions, 20)).astype(np.float32),
        terminals=np.arange(transitions) % 100 == 99,
    )


def measure(folder: Path, transitions: int, algorithm: str) -> tuple[list[float], float]:
    """Private memory of each trial, and what the run took of the shared memory, in MB."""
    name = f"rows{transitions}"
    write_dataset(folder / f"{name}.npz", transitions)
    experiment = {
        "environment": "diffuse_mix",
        "algorithm": algorithm,
        "seed": list(range(TRIALS)),
        "dataset": {"file": f"{name}.npz"},
        "training": {"max_timesteps": 1_000_000, "evaluation_interval": 10, "compile": "off"},
        "resources": {"cpu": (os.cpu_count() or 1) / TRIALS},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(experiment))
    before = shutil.disk_usage("/dev/shm").used
    with (folder / f"{name}.log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, SCRIPT, "grid", f"{name}.yaml"],
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
        try:
            while not settled(folder / "runs" / name):
                if driver.poll() is not None:
                    sys.exit((folder / f"{name}.log").read_text())
                time.sleep(0.5)
            workers = [
                child
                for child in psutil.Process(driver.pid).children(recursive=True)
                if "ray::" in (line := " ".join(child.cmdline())) and ("OfflineRL" in line or "seed" in line)
            ]
            return [worker.memory_full_info().uss / MB for worker in workers], (
                shutil.disk_usage("/dev/shm").used - before
            ) / MB
        finally:
            driver.terminate()
            driver.wait()


def settled(run: Path) -> bool:
    """Whether every trial has been at work for a while."""
    rows = [len(path.read_text().splitlines()) - 1 for path in run.glob("cells/*/metrics.csv")]
    return len(rows) == TRIALS and min(rows) >= SETTLED_ROWS


def main() -> None:
    """Prints a line per size, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=1_000_000)
    parser.add_argument("--algorithm", default="td3_bc")
    options = parser.parse_args()
    means = []
    with tempfile.TemporaryDirectory() as name:
        for transitions in (1_000, options.transitions):
            private, shared = measure(Path(name), transitions, options.algorithm)
            means.append(statistics.mean(private))
            shown = ", ".join(f"{value:.0f}" for value in private)
            print(f"{transitions:>9,} transitions: USS of each trial {shown} MB; shared memory {shared:.0f} MB")
    print(f"a trial holds {means[1] - means[0]:.0f} MB more of its own on the large dataset (at most 60)")


if __name__ == "__main__":
    main()
