"""What `gymnasium.make` and `gymnasium.make_vec` build."""

import os
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from gems_ray.envs.registration import environment_id
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.envs.users_env import SlateEnv, UsersVectorEnv
from gems_ray.errors import ConfigError, SimulatorError, WorldError
from gems_ray.rng import stream
from gems_ray.simulator import TopicRec
from gems_ray.simulator import environment as named_environment
from gems_ray.simulator.items import item_vectors
from gems_ray.world.bundle import World, find_world, shipped_worlds

WorldChoice = World | str | Path | None
Units = Literal["normalised", "latent"]
SHIPPED_ITEM_SEED = 0  # of the items of all shipped worlds

# `AsyncVectorEnv` forks, and a forked process has none of the threads with which torch would share its work: it would
# wait for them for ever.
if hasattr(os, "register_at_fork"):  # not where processes cannot fork
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


class LatentActionsVectorEnv(SlateVectorEnv):
    """`LatentActionsEnv` for U users at once.

    All arrays have the users first, and all episodes begin and end together. With the same seeds, a user does what the
    single environment with that seed does, up to the rounding of beliefs.

    Args:
        num_envs: U.
        environment: name of the environment.
        world: as in `LatentActionsEnv`.
        autoreset_mode: NextStep, SameStep or Disabled, as in `UsersVectorEnv`.
        units: as in `LatentActionsEnv`.
        render_mode: as in `LatentActionsEnv`.
    Raises:
        WorldError: as in `LatentActionsEnv`.
        ConfigError: there is no such mode, or no such units, or something is to be rendered.
    """

    def __init__(
        self,
        num_envs: int,
        environment: str,
        world: WorldChoice = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        units: Units = "normalised",
        render_mode: None = None,
    ) -> None:
        _check_render_mode(render_mode)
        if units not in get_args(Units):
            raise ConfigError(f"units: expected {' or '.join(get_args(Units))}, found `{units}`.")
        opened = _open_world(environment, world)
        simulator = TopicRec(opened.environment, opened.items, users=num_envs, seed=np.random.default_rng())
        super().__init__(simulator, opened.ranker, opened.belief, opened.bounds, autoreset_mode)
        self._bounds = opened.bounds if units == "normalised" else None
        if self._bounds is not None:
            action_space = spaces.Box(-1.0, 1.0, self._bounds.center.shape, np.float32)
            self._set_spaces(self.single_observation_space, action_space)

    def _slates(self, actions: np.ndarray) -> np.ndarray:
        actions, shape = np.asarray(actions), self.action_space.shape
        is_number = actions.dtype.kind in "iuf"
        is_finite = not is_number or bool(np.isfinite(actions).all())
        if actions.shape != shape or not is_number or not is_finite:
            raise SimulatorError(
                f"actions: expected finite numbers of shape {shape}, found shape {actions.shape} of {actions.dtype}"
                f"{'' if is_finite else ' with NaN or infinity in it'}."
            )
        actions = actions.astype(np.float32)
        return super()._slates(actions if self._bounds is None else self._bounds.to_latent(actions))


class LatentActionsEnv(SlateEnv):
    """One user; the agent chooses a point of the ranker's latent space and observes a belief.

    ## Action space
    `Box(-1.0, 1.0, (32,), float32)`, in normalised units.

    | number | meaning | lowest | highest |
    |---|---|---|---|
    | 0 to 31 | one number of the latent action: -1 and 1 are the sides of the world's action box | -1 | 1 |

    The ranker turns the latent action into a slate of ten items. It takes values outside the box as well.

    ## Observation space
    `Box(-1.0, 1.0, (20,), float32)`

    | number | meaning | lowest | highest |
    |---|---|---|---|
    | 0 to 19 | one number of the belief: what the world's encoder remembers of all slates and clicks so far | -1 | 1 |

    ## Rewards
    The number of clicks on the slate, from 0 to 10.

    ## Episode
    `reset` draws a user, who first sees the same slate as everybody else; its clicks make the first belief and are no
    reward. The episode is terminated after 100 steps. The published datasets mark this time limit as the end of an
    episode too, so `truncated` is never true.

    ## Info
    `slate` (10,) int64 and `clicks` (10,) bool. The other entries are known to a simulator only, and must not be an
    input of a policy: `click_probability` and `score` (10,) float32, `topic` (10,) int64 of every slot, `bored` (10,)
    bool for every topic, `user` (20,) float32.

    Args:
        environment: name of the environment, which `gymnasium.make` fills in.
        world: an opened world or the folder of one; None for the shipped world of the environment.
        units: of the actions; "latent" for those of datasets, where the action space is the world's action box.
        render_mode: None; nothing is rendered.
    Raises:
        WorldError: no world is shipped for the environment, or the given one simulates another environment.
        ConfigError: there are no such units, or something is to be rendered.
    Example:
        gymnasium.make("gems_ray/DiffuseTopDown-v0")
        gymnasium.make("gems_ray/FocusedMix-v0", world="worlds/focused_mix")
    """

    def __init__(
        self,
        environment: str,
        world: WorldChoice = None,
        units: Units = "normalised",
        render_mode: None = None,
    ) -> None:
        _check_render_mode(render_mode)
        super().__init__(LatentActionsVectorEnv(1, environment, world, AutoresetMode.DISABLED, units))


class SlateActionsVectorEnv(UsersVectorEnv):
    """`SlateActionsEnv` for U users at once.

    All arrays have the users first, and all episodes begin and end together. With the same seeds, a user does what the
    single environment with that seed does.

    Args:
        num_envs: U.
        environment: name of the environment.
        world: as in `SlateActionsEnv`.
        autoreset_mode: NextStep, SameStep or Disabled, as in `UsersVectorEnv`.
        render_mode: as in `LatentActionsEnv`.
    Raises:
        WorldError: the world simulates another environment.
        ConfigError: there is no such mode, or something is to be rendered.
    """

    def __init__(
        self,
        num_envs: int,
        environment: str,
        world: WorldChoice = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: None = None,
    ) -> None:
        _check_render_mode(render_mode)
        if world is None:
            parameters = named_environment(environment)
            items = item_vectors(parameters, stream(SHIPPED_ITEM_SEED, "items"))
        else:
            opened = _open_world(environment, world)
            parameters, items = opened.environment, opened.items
        super().__init__(TopicRec(parameters, items, users=num_envs, seed=np.random.default_rng()), autoreset_mode)
        slate = spaces.MultiDiscrete([parameters.num_items] * parameters.slate_size)
        clicks = spaces.MultiBinary(parameters.slate_size)
        self._set_spaces(spaces.Dict({"slate": slate, "clicks": clicks}), slate)

    def _slates(self, actions: np.ndarray) -> np.ndarray:
        actions = np.array(actions)  # a copy, because `info` keeps the slates
        if (
            actions.dtype.kind in "iu" and actions.size and actions.min() < 0
        ):  # which the simulator takes for the oracle's choice
            raise SimulatorError(f"actions: expected numbers of items, 0 or larger, found {actions.min()}.")
        return actions

    def _observe(self, shown: dict[str, np.ndarray], first: bool) -> dict[str, np.ndarray]:
        return {"slate": shown["slate"].copy(), "clicks": shown["clicks"].astype(np.int8)}


class SlateActionsEnv(SlateEnv):
    """One user; the agent chooses the slate itself and observes the last slate and its clicks.

    No ranker and no belief take part, so every environment can be made without a world.

    ## Action space
    `MultiDiscrete([1000] * 10)`

    | number | meaning | lowest | highest |
    |---|---|---|---|
    | 0 to 9 | item in this slot, the top one first; an item may be shown twice | 0 | 999 |

    ## Observation space
    `Dict(slate=MultiDiscrete([1000] * 10), clicks=MultiBinary(10))`

    | entry | number | meaning | lowest | highest |
    |---|---|---|---|---|
    | `slate` | 0 to 9 | item in this slot of the last slate | 0 | 999 |
    | `clicks` | 0 to 9 | whether the user clicked on it | 0 | 1 |

    ## Rewards, episode, info
    As in `LatentActionsEnv`.

    Args:
        environment: name of the environment, which `gymnasium.make` fills in.
        world: an opened world or the folder of one, whose item vectors are taken; None for those of the shipped
            worlds, and in the focused environments for a draw with the same seed.
        render_mode: None; nothing is rendered.
    Raises:
        WorldError: the world simulates another environment.
        ConfigError: something is to be rendered.
    Example:
        gymnasium.make("gems_ray/DiffuseTopDownSlates-v0")
    """

    def __init__(self, environment: str, world: WorldChoice = None, render_mode: None = None) -> None:
        _check_render_mode(render_mode)
        super().__init__(SlateActionsVectorEnv(1, environment, world, AutoresetMode.DISABLED))


def _open_world(environment: str, world: WorldChoice) -> World:
    """The world that is asked for, of this environment."""
    if isinstance(world, World):
        if world.environment.name != environment:
            raise WorldError(
                f"world: simulates {world.environment.name}, expected one of {environment}. "
                f'Make "{environment_id(world.environment.name)}", or give another world.'
            )
        return world
    try:
        return find_world(environment if world is None else str(world), environment)
    except WorldError as error:
        if world is not None or environment in shipped_worlds():
            raise
        own = f'gymnasium.make("{environment_id(environment)}", world="worlds/{environment}")'
        raise WorldError(f"{error} Here: {own}.") from None


def _check_render_mode(render_mode: str | None) -> None:
    if render_mode is not None:
        raise ConfigError(f"render_mode: expected None, found `{render_mode}`. These environments draw nothing.")
