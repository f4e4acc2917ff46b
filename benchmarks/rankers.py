"""What the ranker's settings are worth: `python benchmarks/rankers.py`.

Trains worlds with 10,000 and 20,000 sessions for the ranker and with both published settings of its lambdas, and one
more without duplicates in slates, one process each, several at once. Prints the returns of their experts with 1,000
test users: mean ± standard error over the seeds. The agent is trained for half as many episodes as by default, so that
a world takes about ten minutes of one core. What is finished is kept; the same command goes on. With `--table` it only
prints what is there.
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
from typing import NamedTuple

from gems_ray.world.bundle import load_world
from gems_ray.world.manifest import MANIFEST

ENVIRONMENTS = ("diffuse_mix", "diffuse_divpen")
PROGRAM = Path(__file__).parents[1] / "run_tune.py"


class Setting(NamedTuple):
    """What a world is trained with."""

    environment: str
    sessions: int
    lambda_click: float
    lambda_kl: float
    duplicates: bool = True

    def folder(self, root: Path, seed: int) -> Path:
        """Where a world is trained."""
        rest = "" if self.duplicates else "_no_duplicates"
        name = f"{self.environment}_{self.sessions // 1000}k_click{self.lambda_click}_kl{self.lambda_kl}{rest}"
        return root / name / f"seed{seed}"

    def options(self) -> list[str]:
        """Of `world train`."""
        options = ["--environment", self.environment, "--sessions", str(self.sessions)]
        options += ["--lambda-click", str(self.lambda_click), "--lambda-kl", str(self.lambda_kl)]
        return options if self.duplicates else [*options, "--no-duplicates"]


# Both published settings of the lambdas.
SETTINGS = [
    Setting(environment, sessions, *lambdas)
    for environment, sessions, lambdas in product(ENVIRONMENTS, (10_000, 20_000), ((0.2, 0.5), (0.5, 1.0)))
] + [Setting("diffuse_mix", 10_000, 0.2, 0.5, duplicates=False)]


def train(root: Path, episodes: int, seed: int, setting: Setting) -> None:
    """Trains one world, or what is missing of it."""
    folder = setting.folder(root, seed)
    if (folder / MANIFEST).exists():
        return
    command = [sys.executable, str(PROGRAM), "world", "train", *setting.options(), "--seed", str(seed)]
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
    print("| environment | sessions | lambda_click, lambda_KL | duplicates | seeds | expert | of each seed |")
    print("|---|---|---|---|---|---|---|")
    for setting in SETTINGS:
        folders = [setting.folder(root, seed) for seed in range(seeds)]
        facts = [load_world(folder).facts["test"]["expert"] for folder in folders if (folder / MANIFEST).exists()]
        if not facts:
            continue
        means = [row["return_mean"] for row in facts]
        spread = f" ± {statistics.stdev(means) / math.sqrt(len(means)):.1f}" if len(means) > 1 else ""
        single = ", ".join(f"{row['return_mean']:.1f} ± {row['return_se']:.1f}" for row in facts)
        print(
            f"| {setting.environment} | {setting.sessions:,} | {setting.lambda_click}, {setting.lambda_kl} "
            f"| {'yes' if setting.duplicates else 'no'} | {len(means)} "
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
        orders = product(range(args.seeds), SETTINGS)
        with ThreadPoolExecutor(args.processes) as pool:
            list(pool.map(lambda order: train(args.folder, args.episodes, *order), orders))
    print_table(args.folder, args.seeds)


if __name__ == "__main__":
    main()
