"""`run_tune.py world`: worlds from nothing, and from files of the original program."""

import math
from pathlib import Path
from typing import Annotated, Literal

import typer

from gems_ray.cli.world_import import import_world, print_test, training_printer

app = typer.Typer(no_args_is_help=True)
app.command("import")(import_world)


@app.callback()
def world() -> None:
    """Make worlds: ranker, belief, behaviour agents."""


@app.command()
def train(
    environment: Annotated[str, typer.Option(help="Name of the environment, for example diffuse_mix.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle [default: worlds/ENVIRONMENT].")] = None,
    items: Annotated[
        str | None, typer.Option(help="diffuse, focused or file:PATH; the environment's own if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of sessions, ranker and agent.")] = 0,
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
) -> None:
    """Train a world from nothing on the CPU. The same command continues an interrupted training."""
    import torch

    from gems_ray.cli.paths import check_folder
    from gems_ray.errors import ConfigError
    from gems_ray.program import same_command
    from gems_ray.rng import stream
    from gems_ray.simulator import environment as named_environment
    from gems_ray.simulator.items import item_vectors
    from gems_ray.world.ranker import RankerConfig
    from gems_ray.worldmaking.agent import AgentTraining
    from gems_ray.worldmaking.ranker import RankerTraining
    from gems_ray.worldmaking.world import WorldRecipe, train_world

    if noise_scale not in ("variance", "standard_deviation"):
        raise ConfigError(f"--noise-scale: expected variance or standard_deviation, found `{noise_scale}`.")
    for option, weight in (("--lambda-click", lambda_click), ("--lambda-kl", lambda_kl)):
        if not math.isfinite(weight):
            raise ConfigError(f"{option}: expected a finite number, found {weight}.")
    scale: Literal["variance", "standard_deviation"] = "variance" if noise_scale == "variance" else "standard_deviation"
    overrides = {"items": items} if items else {}
    recipe = WorldRecipe(
        environment=named_environment(environment, **overrides),
        seed=seed,
        ranker=RankerConfig(lambda_click=lambda_click, lambda_kl=lambda_kl, noise_scale=scale),
        ranker_training=RankerTraining(sessions=sessions, epochs=epochs),
        agent_training=AgentTraining(episodes=episodes),
    )
    item_vectors(recipe.environment, stream(recipe.item_seed, "items"))  # an error now, not after the first line
    folder = Path("worlds") / environment if output is None else output
    check_folder(folder, "--output")
    torch.set_num_threads(1)

    typer.echo(f"Training a world for {environment} in {folder}. Ctrl-C keeps it; the same command continues.")
    try:
        world = train_world(recipe, folder, same_command(), training_printer(epochs, episodes))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. Continue with: {same_command()}", err=True)
        raise typer.Exit(130) from None
    print_test(world)
    typer.echo(f"World {world.fingerprint} written to {folder}.")
