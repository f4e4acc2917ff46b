"""What every offline algorithm offers to the training loop."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field, PlainValidator
from torch import Tensor, nn

from gems_ray.algorithms.adam import Adam
from gems_ray.config import Config
from gems_ray.data.experience import Batch, Experience, Transitions, WindowBatch
from gems_ray.data.normalizer import Normalizer
from gems_ray.device import indexed
from gems_ray.errors import ConfigError
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.rng import stream_seed

if TYPE_CHECKING:
    from gems_ray.algorithms.policy import LearnedPolicy

Noise = Mapping[str, Tensor]  # random numbers of one update by name


def _reward_scale(value: Any) -> str | float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value in ("none", "std") or (number and 0 < value < math.inf):
        return value
    raise ValueError("expected none, std or a number above 0")


RewardScale = Annotated[str | float, PlainValidator(_reward_scale)]


OF_SAMPLER = ("normalize_states", "reward_scale", "bootstrap_time_limit")  # settings that no update looks at


class AlgorithmConfig(Config):
    """Settings that every algorithm has."""

    batch_size: int = Field(256, ge=1, le=1_000_000, description="Transitions per update (CORL).")
    discount: float = Field(0.99, ge=0, le=1, description="Weight of the next step's value (CORL).")
    normalize_states: bool = Field(True, description="States to zero mean and unit deviation (CORL).")
    reward_scale: RewardScale = Field(
        "none", description="Rewards as they are, times a number, or divided by their standard deviation (std)."
    )
    bootstrap_time_limit: bool = Field(
        False, description="Value the state after the last step; false ends the value there, as published."
    )


C = TypeVar("C", bound=AlgorithmConfig)


class Algorithm(ABC, Generic[C]):
    """One offline-RL algorithm: networks, optimisers and the update that a batch of its experience causes.

    Subclasses fill `networks` and `optimizers` in `build` and implement `learn`, `predict` and `policy`. `learn` is
    plain tensor arithmetic: whatever depends on the number of updates or on random numbers comes in from outside, so
    that it can be compiled and captured as it stands.

    Args:
        state_dim: H.
        action_dim: Z.
        config: settings, an instance of the class's `Config`.
        device: where the networks live.
        seed: seed of the `init` and `noise` streams.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AlgorithmConfig]]
    loss_names: ClassVar[tuple[str, ...]]  # everything that `learn` may return
    diagnostic_names: ClassVar[tuple[str, ...]] = ()  # everything that `diagnose` returns
    experience: Experience = Transitions()  # what it learns from; `build` may set another one
    period: int = 1  # updates after which the computation of `learn` repeats
    per_cell: ClassVar[tuple[str, ...] | None] = None  # settings that may differ in a pack of cells; None: no packs
    evaluations_per_row: int = 1  # state-action pairs, or steps, that the networks see for every row of a batch

    def __init__(self, state_dim: int, action_dim: int, config: C, device: str | torch.device, seed: int) -> None:
        self.config = config
        self.state_dim, self.action_dim = state_dim, action_dim
        self.device = indexed(device)
        self.updates = 0
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, Adam] = {}
        self._seed = seed
        self.generator = torch.Generator(self.device).manual_seed(stream_seed(seed, "noise"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "init"))
            self.build()

    @abstractmethod
    def build(self) -> None:
        """Creates networks and optimisers; torch's global generator is seeded for it."""

    @abstractmethod
    def learn(self, batch: Any, noise: Noise, phase: int) -> dict[str, Tensor]:
        """The arithmetic of one update.

        Args:
            batch: of the algorithm's experience, a `Batch` or a `WindowBatch`.
            noise: what `draw_noise` returns.
            phase: number of the update modulo `period`.
        Returns:
            losses as scalar tensors without gradient.
        """

    def first_alike(self, phase: int) -> int:
        """The first phase in which `learn` does the same as in this one: they share a captured graph."""
        return phase

    @abstractmethod
    def predict(self, batch: Any) -> Tensor:
        """What the policy does at every state of a batch: deterministic actions in [-1, 1], shaped as the batch's."""

    @abstractmethod
    def policy(self, normalizer: Normalizer) -> "LearnedPolicy[Any]":
        """What has been learned, as a policy that shares the networks.

        Args:
            normalizer: of the data that it learned from.
        """

    def prepare(self, rewards: np.ndarray, last: np.ndarray, reward_factor: float) -> None:
        """Takes what it must know of the dataset before the first update.

        Args:
            rewards: (N,) float, clicks, of the rows that are trained on.
            last: (N,) bool, last step of an episode.
            reward_factor: what the rewards of batches are multiplied by.
        """

    def select_rows(self, rewards: np.ndarray, last: np.ndarray) -> np.ndarray | None:
        """Rows (n,) int64 of a dataset that are trained on; None for all.

        Args:
            rewards: (N,) float.
            last: (N,) bool, last step of an episode.
        """
        return None

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        """Random numbers of one update by name."""
        return {}

    def update(self, batch: Batch | WindowBatch, noise: Noise | None = None) -> dict[str, Tensor]:
        """One gradient step.

        Args:
            batch: of the algorithm's experience, in normalised units, tensors or arrays of any type.
            noise: random numbers of the update by name, in place of drawn ones.
        Returns:
            losses as scalar tensors on the algorithm's device.
        Raises:
            ConfigError: the algorithm draws no noise of a given name.
        """
        batch = self.experience.batch_type(*batch).to(self.device, self._dtype())
        drawn = self.draw_noise(len(batch.states))
        given = {name: self._tensor(value) for name, value in (noise or {}).items()}
        if unknown := given.keys() - drawn.keys():
            known = ", ".join(drawn) or "no noise"
            raise ConfigError(f"{self.name}: noise `{min(unknown)}` is not known. It draws {known}.")
        losses = self.learn(batch, drawn | given, self.updates % self.period)
        self.updates += 1
        return losses

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor | None:
        """The critics' estimate (B,) of normalised states and actions; None where there is no critic."""
        return None

    def next_values(self, next_states: Tensor) -> Tensor | None:
        """What the update's target takes for the value (B,) of the next states; None where there is no critic."""
        return None

    def diagnose(self, batch: Any) -> dict[str, Tensor]:
        """Further evidence of this algorithm on a batch, by `diagnostic_names`."""
        return {}

    def state_dict(self) -> FlatState:
        """Networks, targets, optimisers, random state and step as one flat dictionary of CPU tensors."""
        optimizers = {
            f"{name}_optimizer/{key}": value
            for name, optimizer in self.optimizers.items()
            for key, value in optimizer.state_dict().items()
        }
        return {
            **flatten_modules(self.networks),
            **optimizers,
            "noise_generator": self.generator.get_state(),
            "updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken; every tensor stays where it is in memory."""
        load_modules(self.networks, state)
        for name, optimizer in self.optimizers.items():
            prefix = f"{name}_optimizer/"
            optimizer.load_state_dict(
                {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            )
        self.updates = int(state["updates"])
        if len(state["noise_generator"]) == len(self.generator.get_state()):
            self.generator.set_state(state["noise_generator"])
        else:  # the state of a GPU's generator means nothing to a CPU's, and the other way round
            self.generator.manual_seed(stream_seed(self._seed, "noise", self.updates))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise of the algorithm's own stream."""
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self._dtype())

    def _tensor(self, values: Tensor | np.ndarray) -> Tensor:
        """In the networks' type, where they are."""
        return torch.as_tensor(values).to(self.device, self._dtype())

    def _dtype(self) -> torch.dtype:
        return next(iter(next(iter(self.networks.values())).parameters())).dtype


AnyAlgorithm = Algorithm[Any]


def soft_update(targets: Sequence[Tensor], sources: Sequence[Tensor], tau: float | Tensor) -> None:
    """Moves every target towards its source by the share tau, a tensor in a pack of cells."""
    with torch.no_grad():
        for target, source in zip(targets, sources, strict=True):
            if isinstance(tau, Tensor):  # torch.vmap knows `lerp_` as a loop only
                target.add_(tau * (source - target))
            else:
                target.lerp_(source, tau)
