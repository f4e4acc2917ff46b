"""The policy: what is played, whatever made it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from gems_ray.data.normalizer import Normalizer
from gems_ray.files import atomic_path, write_text_atomically
from gems_ray.flat_state import FlatState
from gems_ray.registry import import_path
from gems_ray.world.belief import GruBelief
from gems_ray.yaml_file import dump_yaml

SCHEMA_VERSION = 1
DESCRIPTION, TENSORS = "policy.yaml", "policy.safetensors"

Observations = Tensor | np.ndarray
State = Any  # memory of a policy: None, or a tree of tensors whose first dimension is the users
Random = np.random.Generator | torch.Generator


class Policy(ABC):
    """Chooses an action for every user of a batch, from what it observes and remembers.

        state = policy.initial_state(users)
        actions, state = policy.act(observations, state, None)  # first step: no rewards yet
        actions, state = policy.act(next_observations, state, rewards)

    Saved as a folder with `policy.yaml` and `policy.safetensors`. A subclass says what is in them by `describe` and
    `tensors`, and comes back from them by `restore`.
    """

    kind: ClassVar[str] = ""  # what `policy.yaml` calls it; its import path where a subclass does not say
    chooses: ClassVar[Literal["latents", "slates"]] = "latents"
    encoder: GruBelief | None = None  # makes the observations that it was trained on; None for the world's own beliefs
    normalizer: Normalizer | None = None  # of the data that it was trained on; None where it was trained on none

    def initial_state(self, users: int) -> State:
        """The memory before the first step of an episode; None for a policy that remembers nothing.

        Args:
            users: U, how many users are played at once.
        """
        return None

    @abstractmethod
    def act(self, observations: Observations, state: State, rewards: Observations | None) -> tuple[Tensor, State]:
        """The actions of the next step.

        Args:
            observations: (U, H) float, beliefs.
            state: what the last call returned, or `initial_state`.
            rewards: (U,) float, clicks on the last slate; None in the first step of an episode.
        Returns:
            latent actions (U, Z) in latent units, or slates (U, K) of item numbers where the policy chooses slates;
            and the memory for the next call.
        """

    def replace_actions(self, state: State, actions: Tensor) -> State:
        """The memory where other actions were played than the policy chose: a logged episode is replayed.

        Args:
            state: what the last call of `act` returned.
            actions: (U, Z) float, latent units, what was played instead.
        """
        return state

    def reseed(self, random: Random) -> None:  # noqa: B027 - a deterministic policy has nothing to do
        """Takes another source of random numbers; without effect on a deterministic policy."""

    def save(self, folder: str | Path) -> None:
        """Writes the policy into a folder; the description last, so that a folder without one is not a policy."""
        self.save_with(Path(folder), self.tensors())

    def save_with(self, folder: Path, tensors: FlatState) -> None:
        """Writes this policy as it was when its `tensors` were taken."""
        with atomic_path(folder / TENSORS) as partial:
            partial.write_bytes(save(tensors))
        kind = self.kind or import_path(type(self))
        description = {"schema_version": SCHEMA_VERSION, "kind": kind, **self.describe()}
        write_text_atomically(folder / DESCRIPTION, dump_yaml(description))

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain data from which `restore` makes the policy again."""

    def tensors(self) -> FlatState:
        """Weights from which `restore` makes the policy again, on the CPU."""
        return {}

    @classmethod
    @abstractmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState) -> "Policy":
        """The policy that `describe` and `tensors` stand for.

        Raises:
            KeyError, TypeError, RuntimeError: they do not fit together.
        """


def standard_normal(random: Random, users: int, size: int) -> Tensor:
    """Noise (U, size) float32."""
    if isinstance(random, torch.Generator):
        return torch.randn((users, size), generator=random)
    return torch.from_numpy(random.standard_normal((users, size), dtype=np.float32))


def uniform(random: Random, users: int, size: int) -> Tensor:
    """Numbers (U, size) float32 from [0, 1)."""
    if isinstance(random, torch.Generator):
        return torch.rand((users, size), generator=random)
    return torch.from_numpy(random.random((users, size), dtype=np.float32))
