"""A policy of your own with a memory: it keeps a slate that was clicked, and tries another one otherwise.

Run it with `python examples/own_policy.py --users 1000`.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gems_ray
from gems_ray.action_box import ActionBox
from gems_ray.policies.latents import RandomLatents


class KeepWhatWorks(gems_ray.Policy):
    """Repeats a user's latent action while its slate gets enough clicks, and draws a random one otherwise.

    Its memory is the latent actions of the last step, (U, Z) float32.

    Args:
        bounds: action box of the world, from which latent actions are drawn.
        enough: clicks on a slate for which it is shown again.
    """

    def __init__(self, bounds: ActionBox, enough: int) -> None:
        self.enough = enough
        self.explorer = RandomLatents(bounds)

    def act(self, observations: Any, state: Any, rewards: Any) -> tuple[Tensor, Any]:
        """Latent actions (U, Z), and the same as the memory for the next step."""
        actions, _ = self.explorer.act(observations, None, rewards)
        if state is not None:  # there is no memory in the first step of an episode
            keep = torch.as_tensor(rewards) >= self.enough
            actions = torch.where(keep[:, None], state, actions)
        return actions, actions

    def reseed(self, random: Any) -> None:
        """Takes another source of random numbers, so that an evaluation can be repeated."""
        self.explorer.reseed(random)

    def describe(self) -> dict[str, Any]:
        """What `policy.yaml` holds."""
        return {"enough": self.enough}

    def tensors(self) -> dict[str, Tensor]:
        """What `policy.safetensors` holds."""
        return self.explorer.tensors()

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "KeepWhatWorks":
        """The policy that was saved."""
        bounds = ActionBox(*(np.asarray(tensors[name]) for name in ("center", "scale")))
        return cls(bounds, description["enough"])


def main() -> None:
    """Runs the example with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--environment", default="diffuse_mix", help="an environment whose world is shipped")
    parser.add_argument("--users", type=int, default=1000, help="users who play each policy")
    arguments = parser.parse_args()

    world = gems_ray.load_world(arguments.environment)
    policies = {
        "random latents": RandomLatents(world.bounds),
        **{f"keep from {enough} clicks on": KeepWhatWorks(world.bounds, enough) for enough in (1, 2, 3, 4)},
    }
    for name, policy in policies.items():
        result = gems_ray.evaluate(policy, world, users=arguments.users)
        print(f"{name:<22} {result.return_mean:6.1f} ± {result.return_se:.1f} clicks per episode")


if __name__ == "__main__":
    main()
