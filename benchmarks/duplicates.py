"""What slates without duplicates change in worlds: `python benchmarks/duplicates.py [WORLD ...]`.

Prints, for every shipped world or for the named ones, the mean return of random latents and of both agents with both
decoders, ± standard error, and how many different items a slate of the expert shows. The agents were trained with
duplicates.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

from dataclasses import replace

import torch

from gems_ray.evaluation.returns import Evaluator
from gems_ray.policies.latents import MeanAgent, RandomLatents
from gems_ray.world.bundle import find_world, shipped_worlds

USERS = 1_000


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worlds", nargs="*", default=shipped_worlds(), help="folders; without any, the shipped worlds")
    names = parser.parse_args().worlds
    torch.set_num_threads(1)
    print("| world | duplicates | random latents | medium | expert | items in a slate of the expert |")
    print("|---|---|---|---|---|---|")
    for name in names:
        world = find_world(name)
        for kind in (world, replace(world, ranker=world.ranker.without_duplicates())):
            evaluator = Evaluator(kind, "test", USERS)
            policies = [RandomLatents(kind.bounds), *(MeanAgent(kind.agents[key]) for key in ("medium", "expert"))]
            rows = [evaluator.evaluate(policy) for policy in policies]
            returns = [f"{row.return_mean:.1f} ± {row.return_se:.1f}" for row in rows]
            cells = [name, "yes" if kind is world else "no", *returns, f"{rows[-1].distinct_items_per_slate:.2f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
