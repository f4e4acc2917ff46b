"""Offline-RL algorithms by name.

A module of this package that defines one registers it by being there. From outside, an algorithm comes by `register`,
by the entry-point group `gems_ray.algorithms` of an installed package, or by its import path `package.module:Class`.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from typing import Any, TypeVar

import torch

from gems_ray.algorithms.base import Algorithm, AlgorithmConfig
from gems_ray.algorithms.policy import LearnedPolicy
from gems_ray.algorithms.transitions import TransitionAlgorithm
from gems_ray.config import validate
from gems_ray.errors import ConfigError
from gems_ray.registry import Registry, import_class, import_path

ENTRY_POINTS = "gems_ray.algorithms"

AlgorithmClass = type[Algorithm[Any]]
T = TypeVar("T", bound=AlgorithmClass)


class AlgorithmRegistry(Registry[AlgorithmClass]):
    """Algorithms by name: those of this package, those of installed packages, registered ones, and import paths."""

    def register(self, algorithm: T) -> T:
        """Makes an algorithm known by its `name`; can be used as a decorator.

        Args:
            algorithm: a subclass of `Algorithm` with a `name`.
        Raises:
            ConfigError: it is no such class, or another algorithm has the name.
        """
        if not _is_algorithm(algorithm):
            raise ConfigError(f"register: expected a subclass of Algorithm with a `name`, found {algorithm!r}.")
        known = self._entries.get(algorithm.name)
        if known not in (None, algorithm) and self.spell(known) != self.spell(algorithm):
            raise ConfigError(
                f"register: the name `{algorithm.name}` belongs to {known.__module__}.{known.__qualname__} already. "
                "Choose another `name`."
            )
        self._entries[algorithm.name] = algorithm
        return algorithm

    def spell(self, algorithm: AlgorithmClass) -> str:
        """How a file names an algorithm: by its name where every process knows that, else by its import path."""
        if algorithm.__module__.startswith(f"{__name__}.") or algorithm.name in self._installed:
            return algorithm.name
        return import_path(algorithm)

    def __getitem__(self, name: str) -> AlgorithmClass:
        if ":" in name:
            return self.register(import_class(name, Algorithm, "algorithm"))
        if name not in self._entries and name in self._installed:
            self.register(import_class(self._installed[name].value, Algorithm, f"algorithm {name}"))
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        return ":" in str(name) or name in set(self)

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._installed})

    def __len__(self) -> int:
        return len(set(self))

    @cached_property
    def _installed(self) -> Mapping[str, EntryPoint]:
        """Algorithms of installed packages."""
        return {point.name: point for point in entry_points(group=ENTRY_POINTS)}


def _is_algorithm(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, Algorithm) and hasattr(entry, "name")


def _discover() -> dict[str, AlgorithmClass]:
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {entry.name: entry for module in modules for entry in vars(module).values() if _is_algorithm(entry)}


ALGORITHMS = AlgorithmRegistry("algorithm", _discover())
register = ALGORITHMS.register


def make_algorithm(
    name: str,
    state_dim: int,
    action_dim: int,
    config: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> Algorithm[Any]:
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


__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AlgorithmConfig",
    "LearnedPolicy",
    "TransitionAlgorithm",
    "make_algorithm",
    "register",
]
