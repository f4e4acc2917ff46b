"""What the ranker's settings are worth: `python benchmarks/rankers.py`.

Trains worlds with 10,000 and 20,000 sessions for the ranker and with both published settings of its lambdas, one
process each, several at once, and prints the returns of their experts with 1,000 test users: mean ± standard error
over the seeds. The agent is trained for half as many episodes as by default, so that a world takes about a quarter of
an hour of one core. What is finished is kept; the same command goes on. With `--table` it only prints what is there.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from gems_ray.world.bundle import load_world
from gems_ray.world.manifest import MANIFEST

ENVIRONMENTS = ("diffuse_mix", "diffuse_divpen")
SESSIONS = {10_000: "10k", 20_000: "20k"}
LAMBDAS = ((0.2, 0.5), (0.5, 1.0))  # click, KL: the public experiments' and the paper's
PROGRAM = Path(__file__).parents[1] / "run_tune.py"


def folder_of(root: Path, environment: str, sessions: int, lambdas: tuple[float, float], seed: int) -> Path:
    """Where a world is trained."""
    click, kl = lambdas
    return root / f"{environment}_{SESSIONS[sessions]}_click{click}_kl{kl}" / f"seed{seed}"


def train(root: Path, episodes: int, environment: str, sessions: int, lambdas: tuple[float, float], seed: int) -> None:
    """Trains one world, or what is missing of it."""
    folder = folder_of(root, environment, sessions, lambdas, seed)
    if (folder / MANIFEST).exists():
        return
    click, kl = lambdas
    command = [sys.executable, str(PROGRAM), "world", "train", "--environment", environment, "--seed", str(seed)]
    command += ["--sessions", str(sessions), "--lambda-click", str(click), "--lambda-kl", str(kl)]
    command += ["--episodes", str(episodes)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"seed{seed}.log").open("a") as log:
        subprocess.run(
            [*command, "--output", str(folder)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            check=True,
        )


def print_table(root: Path, seeds: int) -> None:
    """The worlds that are finished, a line for each setting."""
    print("| environment | sessions | lambda_click, lambda_KL | seeds | expert | of each seed |")
    print("|---|---|---|---|---|---|")
    for environment, sessions, lambdas in product(ENVIRONMENTS, SESSIONS, LAMBDAS):
        folders = [folder_of(root, environment, sessions, lambdas, seed) for seed in range(seeds)]
        facts = [load_world(folder).facts["test"]["expert"] for folder in folders if (folder / MANIFEST).exists()]
        if not facts:
            continue
        means = [row["return_mean"] for row in facts]
        spread = f" ± {statistics.stdev(means) / math.sqrt(len(means)):.1f}" if len(means) > 1 else ""
        single = ", ".join(f"{row['return_mean']:.1f} ± {row['return_se']:.1f}" for row in facts)
        print(
            f"| {environment} | {sessions:,} | {lambdas[0]}, {lambdas[1]} | {len(means)} "
            f"| {statistics.mean(means):.1f}{spread} | {single} |"
        )


def main() -> None:
    """Trains the worlds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("worlds/rankers"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=8_000, help="that the agent of a world is trained on")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="print what is finished and train nothing")
    args = parser.parse_args()
    if not args.table:
        # All settings of one seed before the next seed, so that a table of an unfinished run compares equals.
        orders = product(range(args.seeds), ENVIRONMENTS, SESSIONS, LAMBDAS)
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(lambda order: train(args.folder, args.episodes, *order[1:], order[0]), orders))
    print_table(args.folder, args.seeds)


if __name__ == "__main__":
    main()
