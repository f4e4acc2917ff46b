"""SAC+GeMS, the behaviour agent: a soft actor-critic in the ranker's latent space, with a GRU belief."""

import torch
from torch import Tensor, nn

from gems_ray.action_box import ActionBox
from gems_ray.networks import LOG_STD_RANGE, mlp, squash
from gems_ray.world.belief import GruBelief

SMALLEST_SLOPE = 1e-6  # of the tanh in log-probabilities, as published


class BehaviorAgent(nn.Module):
    """The actor's half of SAC+GeMS: its belief encoder and its tanh-Gaussian policy over the action box.

    Args:
        belief: belief encoder, trained with the policy.
        bounds: box of latent actions.
        hidden_size: width of the policy's hidden layer.
    Source: Deffayet et al. (2023), section 4.2; Haarnoja et al. (2018).
    """

    center: Tensor
    scale: Tensor

    def __init__(self, belief: GruBelief, bounds: ActionBox, hidden_size: int = 256) -> None:
        super().__init__()
        self.belief = belief
        self._hidden_size = hidden_size
        latent_dim = len(bounds.center)
        self.policy = mlp([belief.belief_dim, hidden_size, 2 * latent_dim])
        self.register_buffer("center", torch.as_tensor(bounds.center))
        self.register_buffer("scale", torch.as_tensor(bounds.scale))

    def sizes(self) -> dict[str, int]:
        """What `BehaviorAgent(GruBelief(...), bounds, hidden_size)` needs to be built again."""
        return {**self.belief.sizes(), "hidden_size": self._hidden_size}

    def act(self, beliefs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latent actions (..., Z) for beliefs (..., H); the mean action without noise."""
        mean, log_std = self._gaussian(beliefs)
        return self._to_latent(mean if noise is None else mean + log_std.exp() * noise)

    def sample(self, beliefs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Latent actions and their log-probabilities in the units of the tanh.

        Args:
            beliefs: (..., H).
            noise: (..., Z) standard normal.
        Returns:
            actions (..., Z) and log-probabilities (...).
        """
        squashed, log_probability = squash(*self._gaussian(beliefs), noise, SMALLEST_SLOPE)
        return self.center + self.scale * squashed, log_probability

    def _gaussian(self, beliefs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(beliefs).chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _to_latent(self, before_tanh: Tensor) -> Tensor:
        return self.center + self.scale * torch.tanh(before_tanh)
