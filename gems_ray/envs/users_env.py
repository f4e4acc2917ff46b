"""Simulated users behind Gymnasium's interface; what an action is and what is observed is left to subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import iterate

from gems_ray.errors import ConfigError, SimulatorError
from gems_ray.simulator import TopicRec

Observation = Any  # an array, or a dictionary of arrays, with the users first
Info = dict[str, Any]


class UsersVectorEnv(VectorEnv[Observation, np.ndarray, np.ndarray], ABC):
    """U users at once; all episodes begin and end together.

    `info` holds `slate` (U, K) int64 and `clicks` (U, K) bool, and the privileged entries of `TopicRec`. The last step
    of an episode is reported as terminated: the published datasets mark the time limit so.

    Args:
        simulator: users.
        autoreset_mode: what happens when the episodes are over: `reset` has to be called (Disabled), the next `step`
            begins new ones (NextStep), or the last one does (SameStep, with `final_obs` and `final_info` in `info`).
    Raises:
        ConfigError: there is no such mode.
    """

    def __init__(self, simulator: TopicRec, autoreset_mode: AutoresetMode | str) -> None:
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            known = ", ".join(mode.value for mode in AutoresetMode)
            raise ConfigError(f"autoreset_mode: expected one of {known}, found `{autoreset_mode}`.") from None
        self.metadata = {"autoreset_mode": self.autoreset_mode, "render_modes": []}
        self.simulator = simulator
        self.num_envs = simulator.num_users
        self._generators: list[np.random.Generator] | None = None
        self._over = False

    def _set_spaces(self, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> None:
        """The spaces of one user, and of all."""
        self.single_observation_space, self.single_action_space = observation, action
        self.observation_space = gymnasium.vector.utils.batch_space(observation, self.num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(action, self.num_envs)

    @abstractmethod
    def _slates(self, actions: np.ndarray) -> np.ndarray:
        """Slates (U, K) of item numbers for actions."""

    @abstractmethod
    def _observe(self, shown: dict[str, np.ndarray], first: bool) -> Observation:
        """What is observed of slates and clicks; `first` in an episode, nothing of what was before counts."""

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, Info]:
        """Starts an episode for every user.

        Args:
            seed: of the first user; the others get the numbers that follow it, as in Gymnasium's own vector
                environments. A list has one seed for each user. With None the random numbers go on.
            options: `user_vectors` (U, D) sets the users' preferences.
        Returns:
            observations after the first slate, and info.
        Raises:
            SimulatorError: not one seed for each user, a seed is negative or no whole number, or
                `options["reset_mask"]` leaves somebody out.
        """
        options = options or {}
        if not np.all(options.get("reset_mask", True)):
            raise SimulatorError("reset_mask: all episodes begin together. Reset all users, or leave it out.")
        if seed is not None:
            self.seed(seed)
        self._over = False
        shown = self.simulator.reset(user_vectors=options.get("user_vectors"))
        return self._observe(shown, True), {**shown, **self.simulator.info}

    def seed(self, seed: int | Sequence[int | None]) -> None:
        """Gives every user a generator of its own, as `reset` describes."""
        if isinstance(seed, int | np.integer):
            seeds: Sequence[Any] = [seed + user for user in range(self.num_envs)]
        else:
            seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed]
        if not all(new is None or (isinstance(new, int | np.integer) and new >= 0) for new in seeds):
            raise SimulatorError(f"seed: expected whole numbers, 0 or larger, found {seed}.")
        if len(seeds) != self.num_envs:
            raise SimulatorError(f"seed: expected one for each of {self.num_envs} users, found {len(seeds)}.")
        before = self._generators or [np.random.default_rng() for _ in seeds]
        self.use_generators(
            [old if new is None else np.random.default_rng(new) for old, new in zip(before, seeds, strict=True)]
        )

    def use_generators(self, generators: list[np.random.Generator]) -> None:
        """Draws each user's numbers from the generator that is given for it."""
        self._generators = generators
        self.simulator.reseed(generators)

    def step(self, actions: np.ndarray) -> tuple[Observation, np.ndarray, np.ndarray, np.ndarray, Info]:
        """Shows every user a slate and takes the clicks.

        Returns:
            observations, rewards (U,) float32 in clicks, terminations (U,), truncations (U,), info.
        Raises:
            SimulatorError: the actions are not as the action space says, or the episodes are over.
        """
        never = np.zeros(self.num_envs, dtype=bool)
        if self._over and self.autoreset_mode is AutoresetMode.NEXT_STEP:
            observation, info = self.reset()
            return observation, np.zeros(self.num_envs, dtype=np.float32), never, never.copy(), info
        shown, reward, done, info = self.simulator.step(self._slates(actions))
        observation, info = self._observe(shown, False), {**shown, **info}
        self._over = bool(done.all())
        if self._over and self.autoreset_mode is AutoresetMode.SAME_STEP:
            everyone = np.ones(self.num_envs, dtype=bool)
            last = np.empty(self.num_envs, dtype=object)
            last[:] = list(iterate(self.observation_space, observation))
            final = {"final_obs": last, "_final_obs": everyone, "final_info": info, "_final_info": everyone.copy()}
            observation, info = self.reset()
            info |= final
        return observation, reward, done, never, info


class SlateEnv(gymnasium.Env[Observation, np.ndarray]):
    """One user of a vector environment.

    Args:
        vector_env: an environment with one user that does not reset itself.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, vector_env: UsersVectorEnv) -> None:
        self._vector_env = vector_env
        self.observation_space = vector_env.single_observation_space
        self.action_space = vector_env.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        """Starts an episode; `options["user_vectors"]` (1, D) sets the user's preference."""
        super().reset(seed=seed)
        self._vector_env.use_generators([self.np_random])
        observation, info = self._vector_env.reset(options=options)
        return _only(observation), _only(info)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, Info]:
        """Shows one slate.

        Raises:
            SimulatorError: the action is not as the action space says, or the episode is over.
        """
        action, space = np.asarray(action), self.action_space
        kinds = "iuf" if isinstance(space, gymnasium.spaces.Box) else "iu"
        if action.shape != space.shape or action.dtype.kind not in kinds:
            raise SimulatorError(
                f"action: expected {'numbers' if 'f' in kinds else 'items'} of shape {space.shape}, "
                f"found {action.dtype} of shape {action.shape}."
            )
        observation, reward, done, cut, info = self._vector_env.step(action[None])
        return _only(observation), float(reward[0]), bool(done[0]), bool(cut[0]), _only(info)


def _only(batch: Any) -> Any:
    """The only user's part of arrays with the users first."""
    return {key: value[0] for key, value in batch.items()} if isinstance(batch, dict) else batch[0]
