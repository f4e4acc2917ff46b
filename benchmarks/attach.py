"""How often `dataset attach` errs: files of their own world, and files of every kind that it must refuse.

Every try is a fresh collection with a seed of its own, without metadata, slates and clicks, as published files are.
The wrong files are the hardest of their kind: of everything but one thing they are the world's own.

    python benchmarks/attach.py --output attach.md
"""

import argparse
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch

from gems_ray.data.schema import Dataset
from gems_ray.evaluation.examine import examine
from gems_ray.rng import stream
from gems_ray.simulator import environment
from gems_ray.simulator.items import draw_items
from gems_ray.world.bundle import World, find_world
from gems_ray.worldmaking.collect import collect_dataset

WORLDS = ("diffuse_topdown", "diffuse_mix", "diffuse_divpen")
QUALITIES = ("random", "medium", "expert", "mixed")


@cache
def shipped(name: str) -> World:
    """A shipped world, read once in each process."""
    return find_world(name)


def foreign(world: World, quality: str, episodes: int, seed: int) -> Dataset:
    """A collected dataset of which only the five published arrays are left."""
    return replace(collect_dataset(world, quality, episodes, seed), slates=None, clicks=None, metadata=None)


def other_environment(world: World, seed: int) -> World:
    """The world with the click model of another environment, and all else its own."""
    names = [name for name in WORLDS if name != world.environment.name]
    return replace(world, environment=environment(names[seed % len(names)]))


def other_items(world: World, seed: int) -> World:
    """The world with other item vectors in its simulator."""
    return replace(world, items=draw_items(world.environment, stream(seed, "other items")))


def other_ranker(world: World, seed: int) -> World:
    """The world with the ranker of another one."""
    names = [name for name in WORLDS if name != world.environment.name]
    return replace(world, ranker=shipped(names[seed % len(names)]).ranker)


def shuffled(dataset: Dataset, seed: int) -> Dataset:
    """The same actions in another order."""
    return replace(dataset, actions=dataset.actions[stream(seed, "shuffle").permutation(len(dataset))])


def environments_file(world: World, quality: str, episodes: int, seed: int) -> Dataset:
    """Logged with the same ranker, items and agents, among users who click as in another environment."""
    return foreign(other_environment(world, seed), quality, episodes, seed)


def rankers_file(world: World, quality: str, episodes: int, seed: int) -> Dataset:
    """Logged with the same belief encoder, users and items through another ranker."""
    return foreign(other_ranker(world, seed), quality, episodes, seed)


def items_file(world: World, quality: str, episodes: int, seed: int) -> Dataset:
    """Logged with the same ranker and agents, among users whose tastes other item vectors meet."""
    return foreign(other_items(world, seed), quality, episodes, seed)


def shuffled_file(world: World, quality: str, episodes: int, seed: int) -> Dataset:
    """The world's own, its actions in another order."""
    return shuffled(foreign(world, quality, episodes, seed), seed)


KINDS: dict[str, Callable[[World, str, int, int], Dataset]] = {
    "its own": foreign,
    "another environment's": environments_file,
    "another ranker's": rankers_file,
    "shuffled actions": shuffled_file,
    "another item table's": items_file,
}


def outcome(task: tuple[str, int, int]) -> tuple[str, int]:
    """Kind of one try, and what came of it: 0 accepted, 1 accepted but not sure, 2 refused."""
    kind, seed, episodes = task
    torch.set_num_threads(1)
    world = shipped(WORLDS[seed % len(WORLDS)])
    quality = QUALITIES[seed // len(WORLDS) % len(QUALITIES)]
    found = examine(KINDS[kind](world, quality, episodes, seed), world, seed=seed)
    print(kind, seed, world.environment.name, quality, found.facts, found.refusal or found.notes, flush=True)
    return kind, 2 if found.refusal else 1 if found.notes else 0


def main() -> None:
    """Runs all tries and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=104, help="files of their own world")
    parser.add_argument("--wrong", type=int, default=52, help="files of each kind that must be refused")
    parser.add_argument("--episodes", type=int, default=40, help="of every file")
    parser.add_argument("--output", type=Path, help="file of the table")
    options = parser.parse_args()
    tries = {kind: options.tries if kind == "its own" else options.wrong for kind in KINDS}
    tasks = [(kind, seed, options.episodes) for kind, count in tries.items() for seed in range(count)]
    counts = {kind: [0, 0, 0] for kind in KINDS}
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        for kind, result in pool.imap(outcome, tasks):
            counts[kind][result] += 1
    lines = ["| file | tries | accepted, sure | accepted, not sure | refused |", "|---|---|---|---|---|"]
    lines += [f"| {kind} | {sum(row)} | {row[0]} | {row[1]} | {row[2]} |" for kind, row in counts.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
