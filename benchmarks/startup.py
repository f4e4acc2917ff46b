"""How long nine cells take that have next to nothing to train: the price of starting, driver included.

    python benchmarks/startup.py [--rounds 3]

The goal is 15 s on 2 idle cores. Datasets and reference policies are made before the clock starts.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "run_tune.py"
EXPERIMENT = {
    "environment": ["diffuse_topdown", "diffuse_mix", "diffuse_divpen"],
    "algorithm": "td3_bc",
    "seed": [0, 1, 2],
    "settings": {"td3_bc": {"hidden_sizes": [16]}},
    "dataset": {"quality": "random", "episodes": 2},
    "training": {"max_timesteps": 1, "evaluation_interval": 1},
    "evaluation": {"validation_users": 2, "test_users": 2},
    "resources": {"cpu": 1},
}


def run(folder: Path, *arguments: str) -> float:
    """Seconds of one command."""
    start = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return time.perf_counter() - start


def main() -> None:
    """Prints the seconds of every round, and where they go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "trivial.yaml").write_text(json.dumps(EXPERIMENT))
        run(folder, "grid", "trivial.yaml", "--name", "warm")
        bare = min(run(folder, "grid", "--help") for _ in range(rounds))
        finished = min(run(folder, "grid", "trivial.yaml", "--name", "warm") for _ in range(rounds))
        seconds = [run(folder, "grid", "trivial.yaml", "--name", f"round{index}") for index in range(rounds)]
    print(f"help text                     {bare:5.1f} s")
    print(f"nine cells, nothing to do     {finished:5.1f} s   imports, datasets, tables")
    print(f"nine cells from nothing       {min(seconds):5.1f} s   best of {', '.join(f'{s:.1f}' for s in seconds)}")


if __name__ == "__main__":
    main()
