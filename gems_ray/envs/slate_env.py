"""Gymnasium environments whose actions are latents: a ranker decodes, users click, a belief remembers."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from gems_ray.action_box import ActionBox
from gems_ray.simulator import TopicRec
from gems_ray.world.belief import GruBelief
from gems_ray.world.ranker import GemsRanker


class SlateVectorEnv(VectorEnv[np.ndarray, np.ndarray, Any]):
    """U users at once; all episodes begin and end together.

    Observations are beliefs (U, H) float32, actions are latents (U, Z) in latent units. `info` holds `slate` (U, K)
    int64 and `clicks` (U, K) bool, and the privileged entries of `TopicRec`. The last step of an episode is reported
    as terminated: the published datasets mark the time limit so.

    Args:
        simulator: users.
        ranker: decoder of the latents.
        belief: encoder of slates and clicks.
        bounds: box of the action space; the decoder takes any latent.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}

    def __init__(self, simulator: TopicRec, ranker: GemsRanker, belief: GruBelief, bounds: ActionBox) -> None:
        self.simulator = simulator
        self.num_envs = simulator.num_users
        self._ranker = ranker
        self._belief_encoder = belief
        self.latent_dim = len(bounds.center)  # Z
        self.single_observation_space = spaces.Box(-1.0, 1.0, (belief.belief_dim,), np.float32)
        self.single_action_space = spaces.Box(bounds.center - bounds.scale, bounds.center + bounds.scale)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode for every user.

        Args:
            seed: reseeds the simulator; a list's first entry counts, since one generator serves all users.
            options: `user_vectors` (U, D) sets the users' preferences.
        Returns:
            beliefs (U, H) after the first slate, and info.
        """
        if isinstance(seed, list):
            seed = seed[0]
        if seed is not None:
            self.simulator.reseed(seed)
        shown = self.simulator.reset(user_vectors=(options or {}).get("user_vectors"))
        self._belief: torch.Tensor | None = None
        return self._observe(shown), {**shown, **self.simulator.info}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Decodes latents (U, Z), shows the slates, takes the clicks.

        Returns:
            beliefs (U, H), rewards (U,) float32 in clicks, terminations (U,), truncations (U,), info.
        """
        slates = self._ranker.decode(torch.as_tensor(actions, dtype=torch.float32))
        shown, reward, done, info = self.simulator.step(slates)
        return self._observe(shown), reward, done, np.zeros_like(done), {**shown, **info}

    @torch.no_grad()
    def _observe(self, shown: dict[str, np.ndarray]) -> np.ndarray:
        slates, clicks = torch.from_numpy(shown["slate"]), torch.from_numpy(shown["clicks"])
        self._belief = self._belief_encoder.step(slates, clicks, self._belief)
        return self._belief.numpy()


class SlateEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One user of a `SlateVectorEnv`.

    Args:
        vector_env: an environment with one user.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, vector_env: SlateVectorEnv) -> None:
        self._vector_env = vector_env
        self.observation_space = vector_env.single_observation_space
        self.action_space = vector_env.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Starts an episode; `options["user_vectors"]` (1, D) sets the user's preference."""
        super().reset(seed=seed)
        observation, info = self._vector_env.reset(seed=seed, options=options)
        return observation[0], {key: value[0] for key, value in info.items()}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Shows the slate of one latent (Z,)."""
        observation, reward, done, cut, info = self._vector_env.step(action[None])
        return (
            observation[0],
            float(reward[0]),
            bool(done[0]),
            bool(cut[0]),
            {key: value[0] for key, value in info.items()},
        )
