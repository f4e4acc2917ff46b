"""Training of a whole world from nothing: log sessions, fit the ranker, train the agent, write the bundle."""

import csv
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gems_ray import __version__
from gems_ray.action_box import ActionBox
from gems_ray.checkpoints import read_checkpoint
from gems_ray.errors import WorldError
from gems_ray.evaluation.record import Evaluation
from gems_ray.evaluation.returns import Evaluator
from gems_ray.files import write_text_atomically
from gems_ray.flat_state import load_modules
from gems_ray.policies.latents import MeanAgent
from gems_ray.rng import stream
from gems_ray.simulator import Environment
from gems_ray.simulator.items import item_vectors
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.bundle import World
from gems_ray.world.ranker import GemsRanker, RankerConfig
from gems_ray.worldmaking.agent import AgentReport, AgentTrainer, AgentTraining, Milestone
from gems_ray.worldmaking.ranker import RankerEpoch, RankerTrainer, RankerTraining, action_box_of, log_sessions
from gems_ray.yaml_file import dump_yaml, plain

TEST_USERS = 1_000
RANKER_LOG, AGENT_LOG, TRAINING = "ranker_log.csv", "agent_log.csv", "training"

Progress = Callable[[RankerEpoch | AgentReport, float], None]  # report, seconds of training so far


@dataclass(frozen=True, slots=True)
class WorldRecipe:
    """Everything that determines a world."""

    environment: Environment
    seed: int = 0
    item_seed: int = 0  # seed of the item draw; the same items for every environment that names the same
    ranker: RankerConfig = field(default_factory=RankerConfig)
    ranker_training: RankerTraining = field(default_factory=RankerTraining)
    agent_training: AgentTraining = field(default_factory=AgentTraining)


def train_world(recipe: WorldRecipe, folder: Path, command: str, progress: Progress) -> World:
    """Trains a world and writes its bundle; a folder with an interrupted training of the same recipe is continued.

    Args:
        recipe: what to train.
        folder: of the bundle; `folder/training` holds the checkpoints until the bundle is complete.
        command: the command line, for the manifest.
        progress: called with every report.
    Raises:
        WorldError: the folder holds another bundle or the training of another recipe.
    """
    work = folder / TRAINING
    items = item_vectors(recipe.environment, stream(recipe.item_seed, "items"))
    claim(folder, dump_yaml(asdict(recipe) | {"ranker": recipe.ranker.as_data()}))
    clock = Clock(work / "seconds.json")
    sessions = log_sessions(recipe.environment, items, recipe.ranker_training.sessions, recipe.seed)

    ranker_trainer = RankerTrainer(sessions, recipe.ranker, recipe.ranker_training, recipe.seed)
    if (checkpoint := work / "ranker.safetensors").exists():
        ranker_trainer.load(*read_checkpoint(checkpoint))
    for epoch in ranker_trainer.run():
        ranker_trainer.save(work / "ranker.safetensors")
        _append(folder / RANKER_LOG, epoch, clock.save())
        progress(epoch, clock.seconds())
    ranker = ranker_trainer.best.requires_grad_(False)
    bounds = action_box_of(ranker, sessions)

    trainer = AgentTrainer(recipe.environment, items, ranker, bounds, recipe.agent_training, recipe.seed)
    agents = train_agents(trainer, ranker, bounds, folder, clock, progress)
    facts = {
        "command": command,
        "program_version": __version__,
        "torch_version": torch.__version__,
        "training_seconds": round(clock.seconds()),
        **{
            quality: {"episodes": milestone.episodes, "validation_return": round(milestone.validation_return, 2)}
            for quality, milestone in _stages(trainer).items()
        },
        "recipe": recipe_facts(recipe),
    }
    world = World(recipe.environment, items, ranker, bounds, agents, facts | {"test": {}})
    best = Evaluator(world, "validation", TEST_USERS).evaluate(MeanAgent(agents["expert"]))
    facts["validation"] = {"users": TEST_USERS, **_rounded(best)}
    facts["test"] = test_returns(world)
    world = World(recipe.environment, items, ranker, bounds, agents, facts)
    world.save(folder)
    shutil.rmtree(work)
    return world


def is_made_by(world: World, recipe: WorldRecipe) -> bool:
    """Whether a finished world was trained by this recipe."""
    made_of = (world.environment, world.ranker.config, world.facts.get("recipe"))
    return made_of == (recipe.environment, recipe.ranker, recipe_facts(recipe))


def recipe_facts(recipe: WorldRecipe) -> dict[str, Any]:
    """What the manifest says of a recipe besides environment and ranker, which have places of their own there."""
    return plain({key: value for key, value in asdict(recipe).items() if key not in ("environment", "ranker")})


def without_duplicates(world: World, command: str) -> World:
    """The same world with a ranker that shows no item twice in a slate, its agents tested anew.

    Its fingerprint is another one, and so are its datasets. The agents are those that were trained with duplicates.

    Args:
        world: with duplicates.
        command: the command line, for the manifest.
    Raises:
        WorldError: the world has no duplicates.
    """
    if not world.ranker.config.duplicates:
        raise WorldError(f"the world {world.fingerprint} shows no item twice in a slate already. Use it as it is.")
    facts = {"command": command, "program_version": __version__, "made_from": world.fingerprint}
    other = replace(world, ranker=world.ranker.without_duplicates(), facts=facts)
    return replace(other, facts=facts | {"test": test_returns(other)})


def claim(folder: Path, text: str) -> None:
    """Makes the folder that of a recipe, or checks that it is.

    Args:
        folder: of the bundle.
        text: the recipe.
    Raises:
        WorldError: the folder holds another bundle or the training of another recipe.
    """
    if (folder / "manifest.yaml").exists():
        raise WorldError(f"{folder}: a finished world is here already. Choose another --output or remove it.")
    described = folder / TRAINING / "recipe.yaml"
    if not described.exists():
        write_text_atomically(described, text)
    elif described.read_text(encoding="utf-8") != text:
        raise WorldError(
            f"{folder}: holds an interrupted training with other settings ({described}). "
            "Give the same settings to continue it, or choose another --output."
        )


def train_agents(
    trainer: AgentTrainer, ranker: GemsRanker, bounds: ActionBox, folder: Path, clock: "Clock", progress: Progress
) -> dict[str, BehaviorAgent]:
    """Trains the behaviour agent, from its last checkpoint where there is one, and picks the qualities.

    Args:
        trainer: of the agent.
        ranker: of its world.
        bounds: action box.
        folder: of the bundle.
        clock: seconds of training so far.
        progress: called with every report.
    """
    checkpoint = folder / TRAINING / "agent.safetensors"
    if checkpoint.exists():
        trainer.load(*read_checkpoint(checkpoint))
    for report in trainer.run():
        trainer.save(checkpoint)
        _append(folder / AGENT_LOG, report, clock.save())
        progress(report, clock.seconds())
    return _agents(trainer, ranker, bounds)


def _stages(trainer: AgentTrainer) -> dict[str, Milestone]:
    """The best milestone on validation, and the one nearest to half way between random and that."""
    returns = np.array([milestone.validation_return for milestone in trainer.milestones])
    half_way = (trainer.random_return + returns[-1]) / 2
    return {"expert": trainer.milestones[-1], "medium": trainer.milestones[int(np.abs(returns - half_way).argmin())]}


def _agents(trainer: AgentTrainer, ranker: GemsRanker, bounds: ActionBox) -> dict[str, BehaviorAgent]:
    """The agents of both stages."""
    agents = {}
    for quality, milestone in _stages(trainer).items():
        sizes = ranker.config
        belief = GruBelief(sizes.num_items, sizes.slate_size, sizes.item_dim)
        agent = BehaviorAgent(belief, bounds, trainer.config.sac.hidden_size)
        load_modules({"agent": agent}, milestone.agent)
        agents[quality] = agent.requires_grad_(False)
    return agents


def test_returns(world: World) -> dict[str, Any]:
    """Returns of every agent and of the reference policies on the test users."""
    evaluator = Evaluator(world, "test", TEST_USERS)
    rows = {name: evaluation for name, evaluation in evaluator.references().items() if name != "behavior"}
    for quality, agent in world.agents.items():
        rows[quality] = evaluator.evaluate(MeanAgent(agent))
    return {
        "users": TEST_USERS,
        **{name: _rounded(row) for name, row in rows.items()},
    }


def _rounded(row: Evaluation) -> dict[str, float]:
    return {"return_mean": round(row.return_mean, 2), "return_se": round(row.return_se, 2)}


def _append(path: Path, report: RankerEpoch | AgentReport, seconds: float) -> None:
    """Adds a line to a training log; lines of an interrupted training that are trained again are replaced."""
    names = [entry.name for entry in fields(report)]
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row and int(row[0]) < astuple(report)[0]]
    values = [f"{value:.6g}" if isinstance(value, float) else str(value) for value in astuple(report)]
    lines = [[*names, "seconds"], *rows, [*values, f"{seconds:.0f}"]]
    write_text_atomically(path, "".join(",".join(line) + "\n" for line in lines))


class Clock:
    """Seconds of training over all interrupted parts.

    Args:
        path: of the file that keeps them.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = json.loads(path.read_text()) if path.exists() else 0.0
        self._start = time.monotonic()

    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.monotonic() - self._start

    def save(self) -> float:
        """Writes them down."""
        seconds = self.seconds()
        write_text_atomically(self._path, json.dumps(seconds))
        return seconds
