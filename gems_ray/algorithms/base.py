"""What every offline algorithm offers to the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, overload

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from gems_ray.config import Config
from gems_ray.data.replay import Batch
from gems_ray.flat_state import FlatState, flatten_modules, flatten_optimizers, load_modules, load_optimizers
from gems_ray.rng import stream_seed


class AlgorithmConfig(Config):
    """Settings that every algorithm has."""

    batch_size: int = Field(256, ge=1, description="Transitions per update (CORL).")
    discount: float = Field(0.99, ge=0, le=1, description="Weight of the next step's value (CORL).")
    normalize_states: bool = Field(True, description="States to zero mean and unit deviation (CORL).")


class Algorithm(ABC):
    """One offline-RL algorithm: networks, optimisers and the update that a batch causes.

    Subclasses fill `networks` and `optimizers` in `build` and implement `update` and `policy`.

    Args:
        state_dim: H.
        action_dim: Z.
        config: settings, an instance of the class's `Config`.
        device: where the networks live.
        seed: seed of the `init` and `noise` streams.
    """

    name: ClassVar[str]
    Config: ClassVar[type[AlgorithmConfig]]
    loss_names: ClassVar[tuple[str, ...]]  # everything that `update` may return
    config: AlgorithmConfig

    def __init__(
        self, state_dim: int, action_dim: int, config: AlgorithmConfig, device: str | torch.device, seed: int
    ) -> None:
        self.state_dim, self.action_dim = state_dim, action_dim
        self.device = torch.device(device)
        self.updates = 0
        self.networks: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.generator = torch.Generator(self.device).manual_seed(stream_seed(seed, "noise"))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "init"))
            self.build(config)

    @abstractmethod
    def build(self, config: AlgorithmConfig) -> None:
        """Creates networks and optimisers; torch's global generator is seeded for it."""

    @abstractmethod
    def update(self, batch: Batch, noise: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """One gradient step.

        Args:
            batch: (states, actions, rewards, next_states, dones) in normalised units.
            noise: the random numbers of the update by name, in place of drawn ones.
        Returns:
            metrics as scalar tensors on the algorithm's device.
        """

    @abstractmethod
    def policy(self, states: Tensor) -> Tensor:
        """Deterministic actions (B, Z) in [-1, 1] for normalised states (B, H)."""

    def q_values(self, states: Tensor, actions: Tensor) -> Tensor | None:
        """The critics' estimate (B,) of normalised states and actions; None where there is no critic."""
        return None

    @overload
    def act(self, observations: Tensor) -> Tensor: ...
    @overload
    def act(self, observations: np.ndarray) -> np.ndarray: ...
    @torch.no_grad()
    def act(self, observations: Tensor | np.ndarray) -> Tensor | np.ndarray:
        """Deterministic actions (B, Z) in [-1, 1] for normalised states (B, H); arrays give arrays."""
        states = torch.as_tensor(observations, dtype=self._dtype(), device=self.device)
        actions = self.policy(states)
        return actions if isinstance(observations, Tensor) else actions.cpu().numpy()

    def state_dict(self) -> FlatState:
        """Networks, targets, optimisers, random state and step as one flat dictionary of CPU tensors."""
        return {
            **flatten_modules(self.networks),
            **flatten_optimizers(self.optimizers),
            "noise_generator": self.generator.get_state(),
            "updates": torch.tensor(self.updates),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continues where `state_dict` was taken."""
        load_modules(self.networks, state)
        load_optimizers(self.optimizers, state)
        self.generator.set_state(state["noise_generator"])
        self.updates = int(state["updates"])

    def step(self, name: str, loss: Tensor) -> None:
        """A gradient step of the named optimiser."""
        self.optimizers[name].zero_grad(set_to_none=True)
        loss.backward()
        self.optimizers[name].step()

    def normal(self, name: str, shape: tuple[int, ...], noise: Mapping[str, Tensor] | None) -> Tensor:
        """The named standard normal noise: given, or drawn."""
        if noise is not None and name in noise:
            return noise[name].to(self.device)
        return torch.randn(shape, generator=self.generator, device=self.device, dtype=self._dtype())

    def _dtype(self) -> torch.dtype:
        return next(iter(next(iter(self.networks.values())).parameters())).dtype


def soft_update(targets: Sequence[Tensor], sources: Sequence[Tensor], tau: float) -> None:
    """Moves every target towards its source by the share tau, all tensors in one call."""
    with torch.no_grad():
        torch._foreach_lerp_(list(targets), list(sources), tau)
