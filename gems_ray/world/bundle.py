"""The world bundle: a directory with a YAML manifest and safetensors, and a fingerprint of both."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gems_ray.action_box import ActionBox
from gems_ray.errors import SimulatorError, WorldError
from gems_ray.files import atomic_path, write_text_atomically
from gems_ray.flat_state import FlatState, flatten_modules, load_modules
from gems_ray.program import command_line
from gems_ray.registry import did_you_mean
from gems_ray.simulator import Environment
from gems_ray.simulator.environments import ENVIRONMENTS
from gems_ray.simulator.items import check_items
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import BELIEF_DIM, GruBelief
from gems_ray.world.manifest import (
    ADVICE,
    MANIFEST,
    SCHEMA_VERSION,
    WEIGHTS,
    AgentSizes,
    WorldManifest,
    check_tensor,
    fitting,
    read_bundle,
    section,
)
from gems_ray.world.ranker import LATENT_DIM, GemsRanker, RankerConfig
from gems_ray.yaml_file import dump_yaml, plain, shown

BELIEF = "belief"  # name of the weights of a world's own encoder


@dataclass(frozen=True)
class World:
    """What turns a latent action into clicks and clicks into a state, and the agents that were trained in it.

    Args:
        environment: simulated environment.
        items: (I, D) float32, item vectors of the simulator.
        ranker: decoder of latent actions.
        bounds: box of latent actions.
        agents: behaviour agents by quality; the belief of `expert` is the world's state encoder.
        facts: how the world was made and what its agents score; not part of the fingerprint.
        encoder: state encoder of a world that has no expert; None where it has one.
    """

    environment: Environment
    items: np.ndarray
    ranker: GemsRanker
    bounds: ActionBox
    agents: Mapping[str, BehaviorAgent]
    facts: Mapping[str, Any]
    encoder: GruBelief | None = None

    @property
    def belief(self) -> GruBelief:
        """The state encoder: the expert actor's belief, or the encoder of a world without an expert."""
        return self.agents["expert"].belief if self.encoder is None else self.encoder

    @property
    def expert(self) -> BehaviorAgent:
        """The best behaviour agent.

        Raises:
            WorldError: the world holds none.
        """
        if "expert" not in self.agents:
            raise WorldError(
                f"the world of {self.environment.name} ({self.fingerprint}) holds no behaviour agent: it was imported "
                "without one. Import it again with `--agent`, or collect `random` data."
            )
        return self.agents["expert"]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of configuration and weights, the first 16 hexadecimal digits."""
        return _fingerprint(self._configuration(), self._tensors())

    def save(self, folder: Path) -> None:
        """Writes the bundle; the manifest last, so that a folder without one is not a bundle."""
        with atomic_path(folder / WEIGHTS) as partial:
            save_file(self._tensors(), partial)
        manifest = {
            "schema_version": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            **self._configuration(),
            # Beside the configuration, and not in it: bundles without sizes keep their fingerprints.
            "agent_sizes": {quality: agent.sizes() for quality, agent in self.agents.items()},
            **({"belief_sizes": self.encoder.sizes()} if self.encoder else {}),
            "facts": dict(self.facts),
        }
        write_text_atomically(folder / MANIFEST, dump_yaml(manifest))

    def _configuration(self) -> dict[str, Any]:
        return plain(
            {
                "environment": asdict(self.environment),
                "ranker": self.ranker.config.as_data(),
                "agents": list(self.agents),
            }
        )

    def _tensors(self) -> FlatState:
        return {
            "items": torch.from_numpy(self.items),
            "bounds.center": torch.from_numpy(self.bounds.center),
            "bounds.scale": torch.from_numpy(self.bounds.scale),
            **flatten_modules(
                {"ranker": self.ranker, **self.agents, **({BELIEF: self.encoder} if self.encoder else {})}
            ),
        }


def load_world(folder: Path) -> World:
    """Reads a bundle and checks its fingerprint.

    Raises:
        WorldError: the folder is no bundle, is damaged, was changed, or holds parts that make no world.
    """
    manifest, tensors = read_bundle(folder)
    try:
        environment = section(Environment, manifest.environment)
        config = section(RankerConfig, manifest.ranker)
        items = check_tensor(tensors, "items", (environment.num_items, environment.item_dim))
        sides = [check_tensor(tensors, f"bounds.{side}", (config.latent_dim,)) for side in ActionBox._fields]
        bounds = ActionBox(*sides)
        bounds.check()
        modules = fitting(lambda: _modules(manifest, config, bounds), tensors)
        load_modules(modules, tensors)
        for module in modules.values():
            module.requires_grad_(False)
        ranker, encoder = modules.pop("ranker"), modules.pop(BELIEF, None)
        world = World(environment, items, ranker, bounds, modules, manifest.facts, encoder)  # type: ignore[arg-type]
        _check(world, tensors)
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, MemoryError, SimulatorError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:300].rstrip(".")
        raise WorldError(f"{folder}: the bundle is not complete ({reason}). {ADVICE}") from None
    if world.fingerprint != manifest.fingerprint:
        raise WorldError(
            f"{folder}: fingerprint {manifest.fingerprint} expected, {world.fingerprint} found: the bundle was "
            "changed after it was made. Copy it anew or train it again."
        )
    return world


def _check(world: World, tensors: FlatState) -> None:
    """Makes sure that parts which are right by themselves make a world together.

    Raises:
        ValueError: they do not, or a tensor belongs to none of them.
        SimulatorError: the item vectors are impossible.
    """
    environment, config = world.environment, world.ranker.config
    if environment.name not in ENVIRONMENTS:
        hint = did_you_mean(environment.name, list(ENVIRONMENTS))
        raise ValueError(f"`name`: expected one of {', '.join(ENVIRONMENTS)}, found {shown(environment.name)}. {hint}")
    largest = min(environment.num_topics, environment.num_items)  # the first slate shows an item of every topic
    if environment.slate_size > largest:
        raise ValueError(f"`slate_size`: expected at most {largest} with such topics, found {environment.slate_size}")
    expected = {"num_items": environment.num_items, "slate_size": environment.slate_size, "latent_dim": LATENT_DIM}
    agents = {quality: agent.belief.sizes() for quality, agent in world.agents.items()}
    parts: dict[str, dict[str, Any]] = {"ranker": asdict(config), **agents, BELIEF: world.belief.sizes()}
    for part, sizes in parts.items():
        for size, number in expected.items():
            if sizes.get(size, number) != number:
                raise ValueError(f"`{size}` of {part}: expected {number}, found {sizes[size]}")
    if world.belief.belief_dim != BELIEF_DIM:  # another agent than the expert may remember more
        raise ValueError(f"`belief_dim`: expected {BELIEF_DIM}, found {world.belief.belief_dim}")
    check_items(environment, world.items)
    if unknown := sorted(tensors.keys() - world._tensors().keys()):
        raise ValueError(f"{unknown[0][:60]!r} in {WEIGHTS} belongs to no part of it")


def shipped_worlds() -> list[str]:
    """Names of the environments whose expert worlds come with the program."""
    folder = resources.files("gems_ray.world") / "shipped"
    return sorted(entry.name for entry in folder.iterdir() if (entry / MANIFEST).is_file()) if folder.is_dir() else []


def find_world(name_or_folder: str, environment: str | None = None) -> World:
    """The shipped world of an environment, or the bundle in a folder.

    Args:
        name_or_folder: of the world.
        environment: that it must simulate; None for any.
    Raises:
        WorldError: there is neither, or it simulates another environment.
    """
    world = _find_world(name_or_folder)
    found = world.environment.name
    if environment is not None and found != environment:
        raise WorldError(
            f"the world `{name_or_folder}` simulates {found}, expected one of {environment}. "
            f"Name a world of {environment}, or ask for {found}."
        )
    return world


def _find_world(name_or_folder: str) -> World:
    folder = Path(name_or_folder)
    if (folder / MANIFEST).is_file():
        return load_world(folder)
    if name_or_folder in shipped_worlds():
        with resources.as_file(resources.files("gems_ray.world") / "shipped" / name_or_folder) as shipped:
            return load_world(shipped)
    if folder.is_dir():
        raise WorldError(f"{folder}: no {MANIFEST} in this folder. Expected a world bundle.")
    if name_or_folder not in ENVIRONMENTS:
        raise WorldError(
            f"no world `{name_or_folder}`: neither a folder with a {MANIFEST} nor a shipped world. "
            f"{did_you_mean(name_or_folder, list(ENVIRONMENTS))}Shipped: {', '.join(shipped_worlds()) or 'none'}."
        )
    own = f"worlds/{name_or_folder}"
    raise WorldError(
        f"No world for `{name_or_folder}` is shipped (there are {', '.join(shipped_worlds()) or 'none'}). "
        f"Train one: {command_line('world', 'train', '--environment', name_or_folder, '--output', own)}, "
        "then name its folder."
    )


def _modules(manifest: WorldManifest, ranker: RankerConfig, bounds: ActionBox) -> dict[str, nn.Module]:
    """Networks of the sizes that the manifest states, by the names of their weights."""
    known = manifest.agent_sizes
    if taken := {"ranker", "bounds", BELIEF} & set(manifest.agents):
        raise ValueError(f"`agents`: expected other names than those of its parts, found `{min(taken)}`")
    modules: dict[str, nn.Module] = {"ranker": GemsRanker(ranker)}
    modules |= {quality: _agent(known.get(quality), ranker, bounds) for quality in manifest.agents}
    if manifest.belief_sizes is not None:
        modules[BELIEF] = GruBelief(**manifest.belief_sizes.model_dump())
    elif "expert" not in manifest.agents:
        raise ValueError("neither an expert nor a belief encoder is in it")
    return modules


def _agent(sizes: AgentSizes | None, ranker: RankerConfig, bounds: ActionBox) -> BehaviorAgent:
    """An agent with the sizes that the manifest states; a manifest from before it did so means the default ones."""
    if sizes is None:
        return BehaviorAgent(GruBelief(ranker.num_items, ranker.slate_size, ranker.item_dim), bounds)
    return BehaviorAgent(GruBelief(**sizes.model_dump(exclude={"hidden_size"})), bounds, sizes.hidden_size)


def _fingerprint(configuration: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(json.dumps(configuration, sort_keys=True).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name].numpy())
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
