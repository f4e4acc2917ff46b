"""Worlds of several seeds: how the command names them, which one is kept."""

import csv
from dataclasses import replace

import pytest
import typer

from gems_ray.cli.world import app
from gems_ray.errors import WorldError
from gems_ray.simulator import environment
from gems_ray.world.bundle import load_world
from gems_ray.worldmaking.seeds import keep_best, unfinished_seeds
from gems_ray.worldmaking.world import WorldRecipe, claim, recipe_facts
from tests.conftest import make_world

RECIPE = WorldRecipe(environment("diffuse_mix"), ranker=make_world().ranker.config)


@pytest.mark.parametrize(
    "words",
    [
        ["--seeds", "0", "1", "12"],
        ["--seeds", "0", "--seeds", "1", "--seeds", "12"],
        ["--seeds", "0", "1", "--seeds", "12"],
    ],
)
@pytest.mark.parametrize("after", [[], ["--sessions", "50"]])
def test_one_option_for_many_seeds(words, after):
    command = typer.main.get_command(app).commands["train"]
    context = command.make_context("train", ["--environment", "diffuse_mix", *words, *after])
    assert context.params["seeds"] == [0, 1, 12]
    assert context.params["sessions"] == (50 if after else 20_000)


@pytest.fixture
def trained(tmp_path):
    """Three worlds of which the second is best on the validation users, and the third on the test users."""
    returns = {0: (60.0, 61.0), 1: (90.0, 80.0), 2: (70.0, 95.0)}
    for seed, (validation, test) in returns.items():
        row = {"return_se": 1.5}
        facts = {
            "validation": {"users": 9, "return_mean": validation, **row},
            "test": {"users": 9, **{name: {"return_mean": test, **row} for name in ("expert", "medium")}},
            "training_seconds": 60,
            "recipe": recipe_facts(replace(RECIPE, seed=seed)),
        }
        replace(make_world(seed=seed), facts=facts).save(tmp_path / f"seed{seed}")
        for log in ("ranker_log.csv", "agent_log.csv"):
            (tmp_path / f"seed{seed}" / log).write_text(f"log of seed {seed}\n")
    return tmp_path


def test_the_best_on_the_validation_users_is_kept_and_all_are_told(trained):
    kept = keep_best(trained)
    assert kept.fingerprint == load_world(trained).fingerprint == load_world(trained / "seed1").fingerprint
    assert (trained / "agent_log.csv").read_text() == "log of seed 1\n"
    with (trained / "seeds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["validation_mean"], row["expert_mean"], row["kept"]) for row in rows] == [
        ("0", "60.0", "61.0", "False"),
        ("1", "90.0", "80.0", "True"),
        ("2", "70.0", "95.0", "False"),
    ]
    assert [row["kept"] for row in load_world(trained).facts["seeds"]] == [False, True, False]


def test_a_seed_that_is_added_competes_with_those_that_are_there(trained):
    seventh = replace(RECIPE, seed=7)
    assert unfinished_seeds(trained, [replace(RECIPE, seed=2), seventh]) == [seventh]
    keep_best(trained)
    assert unfinished_seeds(trained, [replace(RECIPE, seed=2)]) == []
    assert keep_best(trained).fingerprint == load_world(trained / "seed1").fingerprint


def test_what_is_there_is_left_alone(trained):
    others = replace(RECIPE, item_seed=1)
    with pytest.raises(WorldError, match="seed0: holds a world with other settings"):
        unfinished_seeds(trained, [replace(others, seed=7)])
    make_world().save(trained)
    with pytest.raises(WorldError, match="a finished world is here already"):
        unfinished_seeds(trained, [RECIPE])


def test_an_interrupted_training_of_one_world_is_left_alone(tmp_path):
    claim(tmp_path, "recipe")
    with pytest.raises(WorldError, match="an interrupted training of a single world"):
        unfinished_seeds(tmp_path, [RECIPE])
