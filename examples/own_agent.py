"""An agent of Stable-Baselines3 that learns by trial and error in an environment, and collects a dataset.

It needs the extra `examples`. Run it with `python examples/own_agent.py --steps 40000`.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.sac.policies import Actor
from torch import Tensor

import gems_ray
from gems_ray.action_box import ActionBox
from gems_ray.envs.registration import environment_id
from gems_ray.policies.base import standard_normal


class ManyUsers(VecEnv):
    """Gymnasium's vector environment as the one that Stable-Baselines3 expects.

    Args:
        env: resets itself in the step that ends an episode.
    """

    def __init__(self, env: gymnasium.vector.VectorEnv) -> None:
        assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> np.ndarray:
        """First observations of all users."""
        seeds = None if self._seeds[0] is None else self._seeds
        self._reset_seeds()
        return self.env.reset(seed=seeds)[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Remembers the actions."""
        self.actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Plays them; the last observation of an episode is in `terminal_observation`."""
        observations, rewards, terminated, truncated, info = self.env.step(self.actions)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "final_obs" in info:
            infos = [{"terminal_observation": last, "TimeLimit.truncated": False} for last in info["final_obs"]]
        return observations, rewards, terminated | truncated, infos

    def close(self) -> None:
        """Closes the environment."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same for all users."""
        return [getattr(self.env, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Nothing can be set for a single user."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Nothing can be called for a single user."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """No user has a wrapper of its own."""
        return [False] * self.num_envs


class Agent(gems_ray.Policy):
    """The actor of Stable-Baselines3 as a policy of gems_ray.

    Args:
        actor: what is trained.
        bounds: action box of the world, which leads from normalised units to latent units.
        explore: sample the actions, as in training; the mean actions if not.
    """

    def __init__(self, actor: Actor, bounds: ActionBox, explore: bool = False) -> None:
        self.actor, self.bounds, self.explore = actor, bounds, explore
        self.random = np.random.default_rng(0)

    @torch.no_grad()
    def act(self, observations: Any, state: Any, rewards: Any) -> tuple[Tensor, Any]:
        """Latent actions (U, Z)."""
        actions, log_std, _ = self.actor.get_action_dist_params(torch.as_tensor(observations))
        if self.explore:
            actions = actions + log_std.exp() * standard_normal(self.random, *actions.shape)
        return torch.from_numpy(self.bounds.to_latent(actions.tanh().numpy())), state

    def reseed(self, random: Any) -> None:
        """Takes another source of random numbers, so that a collection can be repeated."""
        self.random = random

    def describe(self) -> dict[str, Any]:
        """Nothing: the actor has a `save` of its own, by which it is kept."""
        raise NotImplementedError

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Agent":
        """As `describe`."""
        raise NotImplementedError


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="diffuse_topdown", help="an environment whose world is shipped")
    parser.add_argument("--steps", type=int, default=40_000, help="slates that the agent learns from")
    parser.add_argument("--episodes", type=int, default=1000, help="length of the dataset")
    parser.add_argument("--users", type=int, default=1000, help="users who play the agent before and after")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    world = gems_ray.load_world(arguments.environment)
    env = gymnasium.make_vec(environment_id(arguments.environment), num_envs=100, autoreset_mode="SameStep")
    learner = SAC(
        "MlpPolicy",
        ManyUsers(env),
        learning_rate=1e-3,
        learning_starts=5_000,
        gradient_steps=8,
        gamma=0.8,
        ent_coef=0.02,
        policy_kwargs={"net_arch": [256]},
        seed=0,
        device="cpu",
    )
    agent = Agent(learner.actor, world.bounds)
    for when in ("before", "after"):
        if when == "after":
            learner.learn(arguments.steps)
        result = gems_ray.evaluate(agent, world, users=arguments.users)
        print(f"{when:<6} {result.return_mean:6.1f} ± {result.return_se:.1f} clicks per episode")

    explorer = Agent(learner.actor, world.bounds, explore=True)
    logged = gems_ray.collect(explorer, world, arguments.episodes, quality="sac")
    logged.save("sac.npz")
    print(f"logged {logged.metadata.behavior_return:6.1f} clicks per episode, {len(logged):,} transitions in sac.npz")


if __name__ == "__main__":
    main()
