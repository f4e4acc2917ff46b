"""`run_tune.py world import`: a world from the files of the original program."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gems_ray.world.bundle import World
    from gems_ray.worldmaking.agent import AgentReport
    from gems_ray.worldmaking.ranker import RankerEpoch


def import_world(
    environment: Annotated[str, typer.Option(help="Environment of the files, for example diffuse_topdown.")],
    gems: Annotated[Path, typer.Option(help="Checkpoint of the GeMS ranker.")],
    items: Annotated[Path, typer.Option(help="Item vectors of the simulator, an (1000, 20) float .npy.")],
    agent: Annotated[Path | None, typer.Option(help="Checkpoint of the SAC+GeMS agent.")] = None,
    belief: Annotated[
        Path | None,
        typer.Option(help="Without an agent: checkpoint of an agent, or a world, whose belief encoder is taken."),
    ] = None,
    bounds: Annotated[Path | None, typer.Option(help="npz with center and scale of the action box.")] = None,
    sessions: Annotated[
        Path | None,
        typer.Option(help="npz with slate and clicks that span the box [default: the simulator logs 1,000 sessions]."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the bundle [default: worlds/ENVIRONMENT].")] = None,
    episodes: Annotated[
        int, typer.Option(min=100, max=10_000_000, help="Episodes of an agent's training, without agent and belief.")
    ] = 16_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of that training, and of logged sessions.")] = 0,
) -> None:
    """Build a world from checkpoints of the original GeMS program; nothing in them is unpickled or run."""
    from gems_ray.cli.console import print_line
    from gems_ray.cli.paths import check_folder
    from gems_ray.processor import compute_with
    from gems_ray.program import same_command
    from gems_ray.simulator import environment as named_environment
    from gems_ray.worldmaking.agent import AgentTraining
    from gems_ray.worldmaking.imported import OriginalFiles, OwnAgent
    from gems_ray.worldmaking.imported import import_world as build

    chosen = named_environment(environment)
    folder = Path("worlds") / environment if output is None else output
    check_folder(folder, "--output")
    compute_with(1)
    files = OriginalFiles(gems, items, agent=agent, belief=belief, bounds=bounds, sessions=sessions)
    own = OwnAgent(AgentTraining(episodes=episodes), seed)
    if agent is None and belief is None:
        print_line(f"Training an agent for the ranker in {folder}. Ctrl-C keeps it; the same command continues.")
    try:
        world = build(chosen, files, folder, same_command(), own, training_printer(0, episodes))
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. Continue with: {same_command()}", err=True)
        raise typer.Exit(130) from None
    print_test(world)
    print_line(f"World {world.fingerprint} written to {folder}.")


def training_printer(epochs: int, episodes: int) -> "Callable[[RankerEpoch | AgentReport, float], None]":
    """What prints the reports of a training.

    Args:
        epochs: of the ranker, in all.
        episodes: of the agent, in all.
    """
    from gems_ray.worldmaking.ranker import RankerEpoch

    def progress(report: "RankerEpoch | AgentReport", seconds: float) -> None:
        minutes = f"{seconds / 60:6.1f} min"
        if isinstance(report, RankerEpoch):
            typer.echo(
                f"{minutes}  ranker epoch {report.epoch}/{epochs}  validation loss {report.validation_loss:.3f}"
                f"  (slate {report.validation_slate_loss:.3f}, click {report.validation_click_loss:.3f})"
            )
        else:
            typer.echo(
                f"{minutes}  agent episode {report.episodes:6d}/{episodes}  return {report.validation_return:6.1f}"
                f"  (training {report.train_return:6.1f})  alpha {report.alpha:.4f}"
            )

    return progress


def print_test(world: "World") -> None:
    """Prints what the test users made of the world's policies."""
    test = dict(world.facts["test"])
    users = test.pop("users")
    for name, row in test.items():
        typer.echo(f"{name:>8}: {row['return_mean']:6.1f} +- {row['return_se']:.1f} on {users} test users")
