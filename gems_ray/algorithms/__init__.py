"""Offline-RL algorithms by name; a module of this package that defines one registers it by being there."""

from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import torch

from gems_ray.algorithms.base import Algorithm
from gems_ray.config import validate
from gems_ray.registry import Registry


def _discover() -> dict[str, type[Algorithm]]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    classes = [entry for module in modules for entry in vars(module).values()]
    return {
        entry.name: entry
        for entry in classes
        if isinstance(entry, type) and issubclass(entry, Algorithm) and hasattr(entry, "name")
    }


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", _discover())


def make_algorithm(
    name: str,
    state_dim: int,
    action_dim: int,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Algorithm:
    """Builds an algorithm.

    Args:
        name: one of ALGORITHMS.
        state_dim: H.
        action_dim: Z.
        config: settings that differ from the algorithm's defaults.
        device: where its networks live.
        seed: seed of initialisation and noise.
    Raises:
        UnknownNameError: no algorithm has this name.
        ConfigError: a setting is unknown or impossible.
    """
    algorithm = ALGORITHMS[name]
    return algorithm(state_dim, action_dim, validate(dict(config or {}), algorithm.Config), device, seed)


__all__ = ["ALGORITHMS", "Algorithm", "make_algorithm"]
