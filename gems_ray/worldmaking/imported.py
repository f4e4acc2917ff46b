"""Worlds from the files of the original GeMS program."""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from gems_ray import __version__
from gems_ray.action_box import ActionBox
from gems_ray.errors import WorldError
from gems_ray.simulator import Environment
from gems_ray.simulator.items import read_items
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import World, find_world
from gems_ray.world.original import read_agent, read_belief, read_bounds, read_ranker, read_sessions
from gems_ray.world.ranker import BOUNDS_SESSIONS, GemsRanker
from gems_ray.worldmaking.agent import AgentTrainer, AgentTraining
from gems_ray.worldmaking.ranker import action_box_of, log_sessions
from gems_ray.worldmaking.world import TRAINING, Clock, Progress, claim, test_returns, train_agents
from gems_ray.yaml_file import dump_yaml, plain


@dataclass(frozen=True, slots=True)
class OriginalFiles:
    """The files of the original program that make a world.

    Args:
        gems: checkpoint of the ranker.
        items: (I, D) float .npy of the simulator's item vectors.
        agent: checkpoint of SAC+GeMS, trained with that ranker; None for a world without it.
        belief: where the belief encoder comes from in a world without an agent: the checkpoint of an agent, or a world.
        bounds: npz with `center` and `scale` of the action box.
        sessions: npz with logged slates and clicks that span the action box, where there are no bounds. Without both,
            the simulator logs 1,000 sessions.
    """

    gems: Path
    items: Path
    agent: Path | None = None
    belief: Path | None = None
    bounds: Path | None = None
    sessions: Path | None = None


@dataclass(frozen=True, slots=True)
class OwnAgent:
    """Training of an agent for an imported ranker that came without one.

    Args:
        training: schedule.
        seed: of the training, and of sessions that the simulator logs.
    """

    training: AgentTraining = field(default_factory=AgentTraining)
    seed: int = 0


def import_world(
    environment: Environment,
    files: OriginalFiles,
    folder: Path,
    command: str,
    own: OwnAgent | None = None,
    progress: Progress = lambda report, seconds: None,
) -> World:
    """Builds a world from files of the original program, plays its policies with the test users, writes the bundle.

    Args:
        environment: in which the ranker was trained.
        files: of the original program.
        folder: of the bundle.
        command: the command line, for the manifest.
        own: training of an agent, where the files hold neither an agent nor a belief encoder; an interrupted training
            in the folder is continued.
        progress: called with every report of a training.
    Raises:
        WorldError: a file is damaged, of another kind, size or environment, or the folder holds a world already.
        SimulatorError: the item file is damaged or has another shape.
        DatasetError: the file of the bounds or of the sessions is damaged.
    """
    if (folder / "manifest.yaml").exists():
        raise WorldError(f"{folder}: a finished world is here already. Choose another --output or remove it.")
    _check_choice(files)
    items = read_items(environment, files.items)
    # Its name alone: the same file gives the same world, wherever it lies.
    environment = replace(environment, items=f"file:{files.items.name}")
    ranker = read_ranker(files.gems, environment).requires_grad_(False)
    own = own or OwnAgent()
    bounds = _bounds(environment, files, ranker, items, own.seed)
    agents: Mapping[str, BehaviorAgent] = {}
    encoder: GruBelief | None = None
    if files.agent is not None:
        agents = {"expert": read_agent(files.agent, environment, bounds, ranker)}
    elif files.belief is not None:
        encoder = _encoder(files.belief, environment)
    else:
        trainer = AgentTrainer(environment, items, ranker, bounds, own.training, own.seed)
        parts = World(environment, items, ranker, bounds, {}, {})
        claim(folder, dump_yaml({"ranker_and_items": parts.fingerprint, **asdict(own)}))
        clock = Clock(folder / TRAINING / "seconds.json")
        agents = train_agents(trainer, ranker, bounds, folder, clock, progress)
    given = {name: path for name, path in asdict(files).items() if path is not None}
    facts = {
        "command": command,
        "program_version": __version__,
        "torch_version": torch.__version__,
        "imported": {name: {"file": path.name, "sha256": _digest(path)} for name, path in given.items()},
        **(
            {}
            if files.agent or files.belief
            else {"recipe": {"seed": own.seed, "agent_training": asdict(own.training)}}
        ),
    }
    world = World(environment, items, ranker, bounds, agents, plain(facts), encoder)
    world = replace(world, facts={**world.facts, "test": test_returns(world)})
    world.save(folder)
    shutil.rmtree(folder / TRAINING, ignore_errors=True)
    return world


def _check_choice(files: OriginalFiles) -> None:
    for first, second in (("agent", "belief"), ("bounds", "sessions")):
        if getattr(files, first) is not None and getattr(files, second) is not None:
            raise WorldError(f"{first} and {second}: expected one of them, found both. Leave out one of the two.")


def _bounds(
    environment: Environment, files: OriginalFiles, ranker: GemsRanker, items: np.ndarray, seed: int
) -> ActionBox:
    if files.bounds is not None:
        return read_bounds(files.bounds, environment)
    if files.sessions is not None:
        slates, clicks = read_sessions(files.sessions, environment)
        box = ranker.action_box(torch.from_numpy(slates), torch.from_numpy(clicks))
    else:
        box = action_box_of(ranker, log_sessions(environment, items, BOUNDS_SESSIONS, seed))
    try:
        box.check()
    except ValueError as error:
        raise WorldError(
            f"{files.gems}: its ranker makes no action box of the sessions ({error}). Give the action box that its "
            "agent was trained with as bounds, or another checkpoint."
        ) from None
    return box


def _encoder(source: Path, environment: Environment) -> GruBelief:
    """The belief encoder of an agent's checkpoint, or of a world, which may be of any environment."""
    if not source.is_dir() and (source.exists() or source.is_symlink()):
        return read_belief(source, environment)
    encoder = find_world(str(source)).belief
    known = encoder.sizes()
    for size, expected in (("num_items", environment.num_items), ("slate_size", environment.slate_size)):
        if known[size] != expected:
            raise WorldError(f"{source}: its belief encoder has {size} {known[size]}, expected {expected}.")
    return encoder


def _digest(path: Path) -> str:
    """SHA-256 of a file, the first 16 hexadecimal digits; of a world, its fingerprint."""
    if not path.is_file():
        return find_world(str(path)).fingerprint
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
