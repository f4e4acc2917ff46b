"""What a behaviour agent did while it was trained, up to its medium stage: the training is repeated."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from gems_ray.config import build
from gems_ray.envs.rollout import LatentEpisodes
from gems_ray.errors import ConfigError
from gems_ray.world.bundle import World
from gems_ray.worldmaking.agent import AgentTrainer, AgentTraining
from gems_ray.worldmaking.sac import SacConfig


def buffer_size(world: World) -> int:
    """How many episodes the training buffer held when the medium agent was saved.

    Raises:
        ConfigError: the world does not say how its medium agent was trained.
    """
    config, medium, _ = _schedule(world)
    return min(medium, config.buffer_episodes)


def training_buffer(world: World, progress: Callable[[float], None] = lambda share: None) -> LatentEpisodes:
    """Repeats the agent's training up to its medium stage, and returns what the training buffer holds then.

    The ranker, the seed and the schedule are those of the world. So on the machine that made the world these are the
    very episodes of its training; another processor rounds differently, and the training goes another way.

    Args:
        world: that holds a medium agent.
        progress: called with the share of the work that is done.
    Returns:
        the episodes in the order in which they were played, with the beliefs of the agent in training.
    Raises:
        ConfigError: the world does not say how its medium agent was trained.
    """
    config, medium, seed = _schedule(world)
    kept: list[LatentEpisodes] = []
    trainer = AgentTrainer(world.environment, world.items, world.ranker, world.bounds, config, seed)

    def keep(episodes: LatentEpisodes) -> None:
        kept.append(episodes)
        progress(min(trainer.episodes / medium, 1.0))

    trainer.on_episodes = keep
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the training of a world: another number rounds differently
    try:
        for report in trainer.run():
            if report.episodes >= medium:
                break
    finally:
        torch.set_num_threads(threads)
    columns = [column.name for column in fields(LatentEpisodes)]
    together = {name: np.concatenate([getattr(episodes, name) for episodes in kept]) for name in columns}
    return LatentEpisodes(**{name: array[-config.buffer_episodes :] for name, array in together.items()})


def _schedule(world: World) -> tuple[AgentTraining, int, int]:
    """How the agent was trained, after how many episodes the medium agent was saved, and the seed."""
    facts: Mapping[str, Any] = world.facts
    try:
        settings = dict(facts["recipe"]["agent_training"])
        settings["sac"] = build(SacConfig, settings["sac"])
        return build(AgentTraining, settings), int(facts["medium"]["episodes"]), int(facts["recipe"]["seed"])
    except (KeyError, TypeError, ValueError):
        name = world.environment.name
        raise ConfigError(
            f"quality medium_replay: the world of {name} does not say how its medium agent was trained, and that "
            f"training is repeated for this quality. Train a world for {name} with `world train`, or choose medium."
        ) from None
