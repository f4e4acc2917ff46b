"""`run_tune.py world`: worlds from nothing, and from files of the original program."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperCommand

from gems_ray.cli.world_import import import_world, print_test, training_printer
from gems_ray.errors import ConfigError, WorldError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gems_ray.world.bundle import World
    from gems_ray.worldmaking.world import WorldRecipe

SEEDS = "--seeds"
COLUMNS = ("validation", "expert", "medium")  # of the table of all seeds

app = typer.Typer(no_args_is_help=True)
app.command("import")(import_world)


@app.callback()
def world() -> None:
    """Make worlds: ranker, belief, behaviour agents."""


class SeedsCommand(TyperCommand):
    """A command whose option `--seeds` takes all numbers that follow it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Writes the option before each of its numbers, as the parser wants it."""
        words: list[str] = []
        is_seed = False
        for word in args:
            if is_seed and word.isdigit() and words[-1] != SEEDS:
                words.append(SEEDS)
            is_seed = word == SEEDS or (is_seed and word.isdigit())
            words.append(word)
        return super().parse_args(ctx, words)


@app.command(cls=SeedsCommand)
def train(
    environment: Annotated[str, typer.Option(help="Name of the environment, for example diffuse_mix.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle [default: worlds/ENVIRONMENT].")] = None,
    items: Annotated[
        str | None, typer.Option(help="diffuse, focused or file:PATH; the environment's own if not given.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of sessions, ranker and agent [default: 0].")] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(min=0, help="Several seeds, `--seeds 0 1 2`: trained side by side by Ray, the best one is kept."),
    ] = None,
    sessions: Annotated[
        int, typer.Option(min=10, max=1_000_000, help="Logged sessions that the ranker is trained on.")
    ] = 20_000,
    epochs: Annotated[int, typer.Option(min=1, max=1_000, help="Passes over the sessions.")] = 3,
    episodes: Annotated[
        int, typer.Option(min=100, max=10_000_000, help="Episodes that the agent is trained on.")
    ] = 16_000,
    lambda_click: Annotated[float, typer.Option(min=0, help="Weight of the ranker's click loss.")] = 0.2,
    lambda_kl: Annotated[float, typer.Option(min=0, help="Weight of the ranker's KL term.")] = 0.5,
    noise_scale: Annotated[
        str, typer.Option(help="What multiplies the ranker's noise: variance (as published) or standard_deviation.")
    ] = "variance",
    no_duplicates: Annotated[
        bool, typer.Option("--no-duplicates", help="Let no slate show an item twice, in training and afterwards.")
    ] = False,
) -> None:
    """Train a world from nothing on the CPU. The same command continues an interrupted training."""
    from gems_ray.cli.paths import check_folder
    from gems_ray.processor import compute_with
    from gems_ray.program import same_command
    from gems_ray.rng import stream
    from gems_ray.simulator import environment as named_environment
    from gems_ray.simulator.items import item_vectors
    from gems_ray.world.ranker import LARGEST_LOSS_WEIGHT, RankerConfig
    from gems_ray.worldmaking.agent import AgentTraining
    from gems_ray.worldmaking.ranker import RankerTraining
    from gems_ray.worldmaking.world import WorldRecipe, train_world

    if noise_scale not in ("variance", "standard_deviation"):
        raise ConfigError(f"--noise-scale: expected variance or standard_deviation, found `{noise_scale}`.")
    for option, weight in (("--lambda-click", lambda_click), ("--lambda-kl", lambda_kl)):
        if not weight <= LARGEST_LOSS_WEIGHT:
            raise ConfigError(f"{option}: expected a finite number up to {LARGEST_LOSS_WEIGHT:,.0f}, found {weight:g}.")
    if seeds and seed is not None:
        raise ConfigError(f"--seed {seed}: {SEEDS} names all seeds. Leave out one of the two.")
    if seeds and len(set(seeds)) < len(seeds):
        raise ConfigError(f"{SEEDS}: expected different numbers, found {' '.join(map(str, seeds))}.")
    scale: Literal["variance", "standard_deviation"] = "variance" if noise_scale == "variance" else "standard_deviation"
    overrides = {"items": items} if items else {}
    recipe = WorldRecipe(
        environment=named_environment(environment, **overrides),
        seed=seed or 0,
        ranker=RankerConfig(
            lambda_click=lambda_click, lambda_kl=lambda_kl, noise_scale=scale, duplicates=not no_duplicates
        ),
        ranker_training=RankerTraining(sessions=sessions, epochs=epochs),
        agent_training=AgentTraining(episodes=episodes),
    )
    item_vectors(recipe.environment, stream(recipe.item_seed, "items"))  # an error now, not after the first line
    folder = Path("worlds") / environment if output is None else output
    check_folder(folder, "--output")
    compute_with(1)

    typer.echo(f"Training a world for {environment} in {folder}. Ctrl-C keeps it; the same command continues.")
    if seeds:
        _train_seeds([replace(recipe, seed=each) for each in seeds], folder)
        return
    try:
        world = train_world(recipe, folder, same_command(), training_printer(epochs, episodes))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. Continue with: {same_command()}", err=True)
        raise typer.Exit(130) from None
    _tell(world, folder)


def _train_seeds(recipes: "Sequence[WorldRecipe]", folder: Path) -> None:
    """Trains what is not finished yet, keeps the best, and shows them all."""
    from gems_ray.program import same_command
    from gems_ray.worldmaking.seeds import SEEDS, keep_best, unfinished_seeds

    if missing := unfinished_seeds(folder, recipes):
        from gems_ray.tune.worlds import train_seeds

        try:
            train_seeds(missing, folder, same_command(), typer.echo)
        except KeyboardInterrupt:
            typer.echo(f"\nInterrupted. Continue with: {same_command()}", err=True)
            raise typer.Exit(130) from None
    kept = keep_best(folder)
    typer.echo("seed   validation        expert        medium   minutes")
    for row in kept.facts["seeds"]:
        returns = "".join(f"{row[f'{name}_mean']:8.1f} ± {row[f'{name}_se']:3.1f}" for name in COLUMNS)
        mark = "  kept" if row["kept"] else ""
        typer.echo(f"{row['seed']:4d}{returns}{row['training_seconds'] / 60:10.1f}{mark}")
    typer.echo(f"World {kept.fingerprint} written to {folder}; {folder / SEEDS} has the numbers of all seeds.")


@app.command("without-duplicates")
def without_duplicates(
    world: Annotated[str, typer.Argument(help="Shipped world or folder of one.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder of the new bundle.")],
) -> None:
    """Make another world of one: with the same agents, but no slate shows an item twice."""
    from gems_ray.cli.paths import check_folder
    from gems_ray.processor import compute_with
    from gems_ray.program import same_command
    from gems_ray.world.bundle import find_world
    from gems_ray.world.manifest import MANIFEST
    from gems_ray.worldmaking import world as worldmaking

    check_folder(output, "--output")
    if (output / MANIFEST).exists():
        raise WorldError(f"{output}: a finished world is here already. Choose another --output or remove it.")
    compute_with(1)
    made = worldmaking.without_duplicates(find_world(world), same_command())
    made.save(output)
    _tell(made, output)


def _tell(world: "World", folder: Path) -> None:
    """What a finished world scores, and where it is."""
    print_test(world)
    typer.echo(f"World {world.fingerprint} written to {folder}.")
