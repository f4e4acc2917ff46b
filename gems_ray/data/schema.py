"""The dataset format: what every npz must hold, and what ours hold besides."""

from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from gems_ray.action_box import ActionBox
from gems_ray.config import Config
from gems_ray.files import atomic_path

SCHEMA_VERSION = 1
STATE_DIM = 20  # H, size of a belief
ACTION_DIM = 32  # Z, size of a latent action
SLATE_SIZE = 10  # K

# Shape after N and dtype of every array; the first five are required.
REQUIRED = {
    "observations": ((STATE_DIM,), np.float32),
    "actions": ((ACTION_DIM,), np.float32),
    "rewards": ((), np.float32),
    "next_observations": ((STATE_DIM,), np.float32),
    "terminals": ((), np.bool_),
}
OPTIONAL = {
    "timeouts": ((), np.bool_),
    "slates": ((SLATE_SIZE,), np.int16),
    "clicks": ((SLATE_SIZE,), np.bool_),
}


class Attachment(Config):
    """What `dataset attach` found when it bound a foreign file to its world."""

    transitions: int  # that were decoded and replayed
    explained: int  # of them, by the world's ranker and belief encoder
    episodes: int  # whose first beliefs were compared with the world's first slate; 0 where none could be
    watched_slots: int  # whose clicks were compared with the click model
    surprise: float  # of those clicks, in standard deviations: 0 expected, far from 0 in another world
    nearest_rival: str  # the other click model that explains the clicks best
    log_odds: float  # of the world's click model against it, natural logarithm


class DatasetMetadata(Config):
    """What the file says about itself, as JSON text under `metadata`."""

    schema_version: int = SCHEMA_VERSION
    environment: str
    quality: str
    episodes: int
    seed: int | None = None  # None: not known, the file was attached
    deterministic: bool | None = None
    expert_share: float | None = None  # share of whole episodes that the expert played
    world_fingerprint: str
    action_center: tuple[float, ...]  # (Z,), latent units
    action_scale: tuple[float, ...]
    behavior_return: float  # mean return of the logged episodes, clicks
    program_version: str
    attached: Attachment | None = None  # None: collected by this program


@dataclass(frozen=True)
class Dataset:
    """Logged transitions; every array has N rows in the order in which they were logged.

    Args:
        observations: (N, H) float32, beliefs.
        actions: (N, Z) float32, latent units.
        rewards: (N,) float32, clicks.
        next_observations: (N, H) float32.
        terminals: (N,) bool, last step of an episode, after which nothing is earned (the time limit, as published).
        timeouts: (N,) bool, last step of an episode that a time limit cut off, as in D4RL: the episode ends there, and
            values go on; None where the file has no such array.
        slates: (N, K) int16, what was shown; None in foreign files.
        clicks: (N, K) bool; None in foreign files.
        metadata: None in foreign files.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray
    terminals: np.ndarray
    timeouts: np.ndarray | None = None
    slates: np.ndarray | None = None
    clicks: np.ndarray | None = None
    metadata: DatasetMetadata | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that training needs: the five required ones, and `timeouts` where there are any."""
        found = {name: getattr(self, name) for name in REQUIRED}
        return found if self.timeouts is None else {**found, "timeouts": self.timeouts}

    @property
    def world_fingerprint(self) -> str | None:
        """Of the world that it was collected in; None for foreign files."""
        return self.metadata.world_fingerprint if self.metadata else None

    @property
    def nbytes(self) -> int:
        """Size of the arrays that training needs."""
        return sum(int(array.nbytes) for array in self.arrays.values())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the arrays that training needs, the first 16 hexadecimal digits."""
        digest = sha256()
        for name, array in self.arrays.items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:16]

    def for_training(self) -> "Dataset":
        """The same without slates and clicks, which training does not read."""
        smaller = replace(self, slates=None, clicks=None)
        vars(smaller)["fingerprint"] = self.fingerprint  # so that no worker computes it again
        return smaller

    def action_box(self) -> ActionBox:
        """The box that maps the actions into [-1, 1].

        From the world where the file names one, else from the smallest and largest action of the file.
        """
        if self.metadata is not None:
            sides = self.metadata.action_center, self.metadata.action_scale
            return ActionBox(*(np.asarray(side, dtype=np.float32) for side in sides))
        low, high = self.actions.min(axis=0), self.actions.max(axis=0)
        return ActionBox((low + high) / 2, np.maximum((high - low) / 2, np.float32(1e-6)))

    def save(self, path: str | Path) -> None:
        """Writes an npz file, whole or not at all; the same dataset gives the same bytes.

        Args:
            path: of the file.
        """
        arrays = {name: getattr(self, name) for name in (*REQUIRED, *OPTIONAL) if getattr(self, name) is not None}
        if self.metadata is not None:
            arrays["metadata"] = np.array(self.metadata.model_dump_json(exclude_none=True))
        with atomic_path(Path(path)) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)
