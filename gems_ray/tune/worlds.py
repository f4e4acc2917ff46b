"""Worlds of several seeds, trained side by side by Ray on this machine."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import ray
from ray.exceptions import RayError

from gems_ray.errors import GemsRayError, WorldError
from gems_ray.execution.interruption import RunInterrupted, first_signal
from gems_ray.processor import compute_with
from gems_ray.tune.cluster import connected
from gems_ray.worldmaking.seeds import seed_folder
from gems_ray.worldmaking.world import AGENT_LOG, RANKER_LOG, WorldRecipe, train_world

LOOK_SECONDS = 1.0  # between two looks at what is going on
TRIES = 2  # more, where the process of a training is lost: it goes on from its last checkpoint


def train_seeds(
    recipes: Sequence[WorldRecipe], folder: Path, command: str, on_line: Callable[[str], None] = lambda line: None
) -> None:
    """Trains the worlds of some seeds, each on one processor core, as many at once as there are cores.

    Args:
        recipes: that differ in their seeds.
        folder: below which each seed has its own; what is there goes on.
        command: the command line, for the manifests.
        on_line: told what happens.
    Raises:
        WorldError: a training failed; those of the other seeds have ended.
        RunInterrupted: a signal came; the last checkpoint of every seed is there.
    """
    failures = []
    farewell = f"error: Ray was lost ({folder / 'ray.log'}). The same command continues from the last checkpoints."
    folder.mkdir(parents=True, exist_ok=True)
    with connected(None, folder / "ray.log", farewell) as dashboard, first_signal() as received:
        on_line(f"Ray dashboard: {dashboard or 'not available'}")
        task = ray.remote(num_cpus=1, max_retries=TRIES)(_train)
        places = {recipe.seed: seed_folder(folder, recipe.seed) for recipe in recipes}
        waiting = {
            task.options(name=f"world seed{recipe.seed}").remote(
                recipe, places[recipe.seed].absolute(), command
            ): recipe
            for recipe in recipes
        }
        seen = {seed: len(_reports(place)) for seed, place in places.items()}
        while waiting:
            ended, _ = ray.wait(list(waiting), timeout=LOOK_SECONDS)
            if (number := received()) is not None:
                raise RunInterrupted(number)
            for seed, place in places.items():
                reports = _reports(place)
                for line in reports[seen[seed] :]:
                    on_line(f"seed {seed}  {line}")
                seen[seed] = len(reports)
            for answer in ended:
                seed = waiting.pop(answer).seed
                if reason := _reason(answer):
                    failures.append(f"seed {seed}: {reason}")
                on_line(f"seed {seed}  {'failed' if reason else 'finished'}")
    if failures:
        raise WorldError(f"{' '.join(failures)} The other seeds have ended. The same command tries again.")


def _train(recipe: WorldRecipe, folder: Path, command: str) -> str:
    """What a worker of Ray does; returns why it failed, if it did."""
    compute_with(1)
    try:
        train_world(recipe, folder, command, lambda report, seconds: None)
    except GemsRayError as error:
        return str(error)
    return ""


def _reason(answer: "ray.ObjectRef[str]") -> str:
    try:
        return ray.get(answer)
    except RayError as error:
        return f"{str(error).strip().splitlines()[-1]}."


def _reports(folder: Path) -> list[str]:
    """A line for each report that a training has written so far."""
    lines = []
    for log, unit, value in ((RANKER_LOG, "epoch", "validation_loss"), (AGENT_LOG, "episodes", "validation_return")):
        if (folder / log).exists():
            with (folder / log).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            lines += [
                f"{float(row['seconds']) / 60:6.1f} min  {unit} {row[unit]}  {value.replace('_', ' ')} {row[value]}"
                for row in rows
            ]
    return lines
