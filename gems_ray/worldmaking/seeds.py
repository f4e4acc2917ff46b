"""Worlds of one recipe with several seeds: which of them is the best one, and what is kept."""

import csv
import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gems_ray.errors import WorldError
from gems_ray.files import atomic_path, write_text_atomically
from gems_ray.world.bundle import World, load_world
from gems_ray.world.manifest import MANIFEST
from gems_ray.worldmaking.world import AGENT_LOG, RANKER_LOG, TRAINING, WorldRecipe, is_made_by

SEEDS = "seeds.csv"


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the world of a seed is trained, below the folder of the best one."""
    return folder / f"seed{seed}"


def finished_seeds(folder: Path) -> list[int]:
    """The seeds whose worlds lie below the folder of the best one, in their order."""
    places = (place for place in folder.glob("seed*") if (place / MANIFEST).exists())
    numbers = (place.name.removeprefix("seed") for place in places)
    return sorted(int(number) for number in numbers if number.isdecimal())


def unfinished_seeds(folder: Path, recipes: Sequence[WorldRecipe]) -> list[WorldRecipe]:
    """The recipes whose worlds are still to be trained, or to be trained to the end.

    Args:
        folder: of the best world.
        recipes: of all seeds.
    Raises:
        WorldError: the folder, or that of a seed, holds a world that was made in another way.
    """
    if (folder / MANIFEST).exists() and not (folder / SEEDS).exists():
        raise WorldError(f"{folder}: a finished world is here already. Choose another --output or remove it.")
    if (folder / TRAINING).exists():
        raise WorldError(
            f"{folder}: holds an interrupted training of a single world ({folder / TRAINING}). Finish it, or choose "
            "another --output."
        )
    finished = finished_seeds(folder)
    for seed in finished:
        place = seed_folder(folder, seed)
        if not is_made_by(load_world(place), replace(recipes[0], seed=seed)):
            raise WorldError(
                f"{place}: holds a world with other settings. Give the same settings, or choose another --output."
            )
    return [recipe for recipe in recipes if recipe.seed not in finished]


def keep_best(folder: Path) -> World:
    """Copies the world with the best expert on the validation users into the folder, with a table of all seeds.

    Args:
        folder: of the best world; those of the seeds lie below it, trained to the end, and stay.
    Returns:
        the best world; its manifest and `seeds.csv` tell what all of them score.
    """
    worlds = {seed: load_world(seed_folder(folder, seed)) for seed in finished_seeds(folder)}
    best = max(worlds, key=lambda seed: worlds[seed].facts["validation"]["return_mean"])
    rows = [_row(seed, world, seed == best) for seed, world in worlds.items()]
    kept = replace(worlds[best], facts={**worlds[best].facts, "seeds": rows})
    for log in (RANKER_LOG, AGENT_LOG):
        with atomic_path(folder / log) as partial:
            shutil.copyfile(seed_folder(folder, best) / log, partial)
    write_text_atomically(folder / SEEDS, _as_csv(rows))
    kept.save(folder)
    return kept


def _row(seed: int, world: World, kept: bool) -> dict[str, Any]:
    facts: Mapping[str, Any] = world.facts
    numbers = {"validation": facts["validation"], **{name: facts["test"][name] for name in ("expert", "medium")}}
    return {
        "seed": seed,
        **{f"{name}_{part}": row[f"return_{part}"] for name, row in numbers.items() for part in ("mean", "se")},
        "training_seconds": facts["training_seconds"],
        "fingerprint": world.fingerprint,
        "kept": kept,
    }


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
