"""What an offline algorithm has learned, as a policy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from gems_ray.algorithms.base import Algorithm
from gems_ray.data.normalizer import Normalizer
from gems_ray.errors import ConfigError, PolicyError, UnknownNameError
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.policies.base import DESCRIPTION, SCHEMA_VERSION, TENSORS, Policy
from gems_ray.policies.latents import MeanAgent, RandomLatents, SampledAgent
from gems_ray.policies.slates import SlatePolicy
from gems_ray.registry import Registry, import_class
from gems_ray.yaml_file import plain, read_yaml

KINDS: Registry[type[Policy]] = Registry(
    "kind of policy", {policy.kind: policy for policy in (RandomLatents, MeanAgent, SampledAgent, SlatePolicy)}
)

A = TypeVar("A", bound=Algorithm[Any])


class LearnedPolicy(Policy, Generic[A]):
    """What an algorithm has learned, through the normaliser of its training data.

    It shares the algorithm's networks: training that goes on changes it. `copy` gives one that stays.

    Args:
        algorithm: what has learned.
        normalizer: of the data that it learned from.
    """

    kind = "learned"
    normalizer: Normalizer

    def __init__(self, algorithm: A, normalizer: Normalizer) -> None:
        self.algorithm = algorithm
        self.normalizer = normalizer

    def settings(self) -> dict[str, Any]:
        """Attributes of the policy that can be changed after training, and their values."""
        return {}

    def copy(self) -> Policy:
        """The same policy with networks of its own, on the same device."""
        return self.restore(self.describe(), self.tensors(), self.algorithm.device)

    def describe(self) -> dict[str, Any]:
        """Algorithm with its settings and sizes, and the settings of the policy."""
        from gems_ray.algorithms import ALGORITHMS

        algorithm = self.algorithm
        return {
            "algorithm": ALGORITHMS.spell(type(algorithm)),
            "settings": algorithm.config.model_dump(mode="json"),
            "state_dim": algorithm.state_dim,
            "action_dim": algorithm.action_dim,
            "policy": self.settings(),
        }

    def tensors(self) -> FlatState:
        """Networks and normaliser."""
        normalizer = {f"normalizer.{name}": value.cpu() for name, value in self.normalizer._asdict().items()}
        return {**flatten_modules(self.algorithm.networks), **normalizer}

    @classmethod
    def restore(cls, description: Mapping[str, Any], tensors: FlatState, device: str | torch.device = "cpu") -> Policy:
        """The policy of an algorithm that is built anew."""
        from gems_ray.algorithms import make_algorithm

        sizes = (description["state_dim"], description["action_dim"])
        algorithm = make_algorithm(description["algorithm"], *sizes, description["settings"], device)
        load_modules(algorithm.networks, tensors)
        normalizer = Normalizer(*(tensors[f"normalizer.{name}"].to(device) for name in Normalizer._fields))
        policy = algorithm.policy(normalizer)
        for name, value in description["policy"].items():
            if name not in policy.settings():
                raise KeyError(name)
            setattr(policy, name, value)
        return policy


def load_policy(folder: str | Path, device: str | torch.device = "cpu") -> Policy:
    """Reads a policy that `Policy.save` wrote, of any kind.

    Args:
        folder: with `policy.yaml` and `policy.safetensors`.
        device: where the networks of a learned policy live.
    Raises:
        PolicyError: the folder is no policy, or it is damaged.
        UnknownNameError: its algorithm or class is not installed here.
    """
    folder = Path(folder)
    try:
        description = plain(read_yaml(folder / DESCRIPTION).data)
        tensors = load_file(folder / TENSORS)
        version, kind = description.pop("schema_version"), description.pop("kind")
        if version > SCHEMA_VERSION:
            raise PolicyError(
                f"{folder}: policy of schema version {version}, this program reads up to {SCHEMA_VERSION}. "
                "Load it with the gems_ray that wrote it, or a newer one."
            )
        if kind == LearnedPolicy.kind:
            return LearnedPolicy.restore(description, tensors, device)
        loaded: Policy = _kind(kind).restore(description, tensors)
        return loaded
    except (ConfigError, OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        if isinstance(error, UnknownNameError):
            raise
        reason = str(error).splitlines()[0]
        raise PolicyError(f"{folder}: not a readable policy ({reason}). Save it again with `policy.save`.") from None


def _kind(name: str) -> Any:
    """The class of policies that are not learned."""
    if ":" in name:
        return import_class(name, Policy, "policy")
    return KINDS[name]
