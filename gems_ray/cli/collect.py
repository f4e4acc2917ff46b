"""`run_tune.py collect`: datasets from a world."""

from pathlib import Path
from typing import Annotated

import typer


def collect(
    environment: Annotated[str, typer.Option(help="Environment with a shipped world, for example diffuse_mix.")],
    quality: Annotated[
        str, typer.Option(help="random, medium, expert, mixed, medium_expert or medium_replay.")
    ] = "expert",
    episodes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Episodes of 100 steps.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="Log mean actions, not samples.")] = False,
    expert_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of expert episodes in mixed data [default: 1/3].")
    ] = None,
    world: Annotated[str | None, typer.Option(help="World bundle, in place of the shipped one.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File [default: offline_datasets/ENVIRONMENT_QUALITY.npz].")
    ] = None,
) -> None:
    """Collect a dataset with a behaviour policy."""
    from gems_ray.cli.console import print_line
    from gems_ray.cli.progress import ConsoleListener
    from gems_ray.data.npz import DATASET_FOLDER
    from gems_ray.errors import ConfigError
    from gems_ray.execution.sources import check_target
    from gems_ray.processor import compute_with
    from gems_ray.simulator import environment as named_environment
    from gems_ray.world.bundle import find_world
    from gems_ray.worldmaking.collect import collect_dataset

    compute_with(1)
    if expert_share is not None and quality != "mixed":
        raise ConfigError(
            f"--expert-share: expected with mixed data only, found quality {quality}. Leave it out, or add "
            "`--quality mixed`."
        )
    named_environment(environment)
    opened = find_world(environment if world is None else world, environment)
    path = DATASET_FOLDER / f"{environment}_{quality}.npz" if output is None else output
    check_target(path, "--output")
    with ConsoleListener() as listener:
        dataset = collect_dataset(
            opened,
            quality,
            episodes,
            seed,
            deterministic=deterministic,
            expert_share=1 / 3 if expert_share is None else expert_share,
            progress=lambda collected: listener.on_episodes(collected, episodes),
        )
    dataset.save(path)
    assert dataset.metadata is not None
    print_line(
        f"{path}: {len(dataset):,} transitions, mean return {dataset.metadata.behavior_return:.1f}, "
        f"world {opened.fingerprint}, dataset {dataset.fingerprint}"
    )
