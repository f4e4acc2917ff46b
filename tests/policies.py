"""Policies that tests play."""

import torch

from gems_ray.policies.base import Policy


class Constant(Policy):
    """The same latents in every step: (Z,) for all users, or (U, Z)."""

    def __init__(self, latents):
        self.latents = torch.as_tensor(latents)

    def act(self, observations, state, rewards):
        return self.latents.expand(len(observations), -1), state

    def describe(self):
        return {}

    def tensors(self):
        return {"latents": self.latents}

    @classmethod
    def restore(cls, description, tensors):
        return cls(tensors["latents"])
