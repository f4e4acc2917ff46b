"""Users who are shown what a ranker makes of latents, and a belief that remembers them."""

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from gems_ray.action_box import ActionBox
from gems_ray.envs.users_env import UsersVectorEnv
from gems_ray.simulator import TopicRec
from gems_ray.world.belief import GruBelief
from gems_ray.world.ranker import GemsRanker


class SlateVectorEnv(UsersVectorEnv):
    """U users at once, for policies that choose latents in latent units.

    Observations are beliefs (U, H) float32, actions are latents (U, Z).

    Args:
        simulator: users.
        ranker: decoder of the latents.
        belief: encoder of slates and clicks.
        bounds: box of the action space; the decoder takes any latent.
        autoreset_mode: as in `UsersVectorEnv`.
    """

    def __init__(
        self,
        simulator: TopicRec,
        ranker: GemsRanker,
        belief: GruBelief,
        bounds: ActionBox,
        autoreset_mode: AutoresetMode | str = AutoresetMode.DISABLED,
    ) -> None:
        super().__init__(simulator, autoreset_mode)
        self._ranker = ranker
        self._belief_encoder = belief
        self._belief: torch.Tensor | None = None
        self.latent_dim = len(bounds.center)  # Z
        self._set_spaces(
            spaces.Box(-1.0, 1.0, (belief.belief_dim,), np.float32),
            spaces.Box(bounds.center - bounds.scale, bounds.center + bounds.scale),
        )

    def _slates(self, actions: np.ndarray) -> np.ndarray:
        return self._ranker.decode(torch.as_tensor(actions, dtype=torch.float32))

    @torch.no_grad()
    def _observe(self, shown: dict[str, np.ndarray], first: bool) -> np.ndarray:
        slates, clicks = torch.from_numpy(shown["slate"]), torch.from_numpy(shown["clicks"])
        self._belief = self._belief_encoder.step(slates, clicks, None if first else self._belief)
        return self._belief.numpy().copy()  # the caller may change it, and the next belief follows from ours
