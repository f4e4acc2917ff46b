"""Training of the SAC+GeMS behaviour agent in the simulator."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gems_ray.action_box import ActionBox
from gems_ray.checkpoints import write_checkpoint
from gems_ray.envs.rollout import LatentEpisodes, rollout
from gems_ray.envs.slate_env import SlateVectorEnv
from gems_ray.errors import CheckpointError
from gems_ray.flat_state import FlatState, flatten_modules, flatten_optimizers, load_modules, load_optimizers
from gems_ray.policies.base import Policy
from gems_ray.policies.latents import MeanAgent, RandomLatents, SampledAgent
from gems_ray.rng import stream, stream_seed
from gems_ray.simulator import Environment, TopicRec
from gems_ray.world.agent import BehaviorAgent
from gems_ray.world.belief import GruBelief
from gems_ray.world.ranker import GemsRanker
from gems_ray.worldmaking.sac import SacConfig, SacGems, Trajectories


@dataclass(frozen=True, slots=True)
class AgentTraining:
    """Schedule of the agent's training; docs/worlds.md compares it with the original one."""

    episodes: int = 16_000
    random_episodes: int = 500  # with random latents, before the first update
    users_per_round: int = 50  # episodes collected at once, with the same weights
    updates_per_episode: float = 1.0
    trajectories_per_update: int = 20
    buffer_episodes: int = 10_000
    final_learning_rate: float = 0.1  # share of the learning rates that is left at the end, falling linearly
    validation_interval: int = 1_000  # episodes
    validation_users: int = 200
    sac: SacConfig = field(default_factory=lambda: SacConfig(initial_alpha=0.1))


@dataclass(frozen=True, slots=True)
class AgentReport:
    """State of the training after some episodes; losses are means since the last report."""

    episodes: int
    updates: int
    validation_return: float
    train_return: float
    critic_loss: float
    actor_loss: float
    alpha: float


class Milestone(NamedTuple):
    """An agent that was better on the validation users than all before it.

    Args:
        episodes: of the training so far.
        validation_return: mean return of its mean actions.
        agent: its weights.
    """

    episodes: int
    validation_return: float
    agent: FlatState


class EpisodeBuffer:
    """The last episodes, in arrays that are filled in a ring.

    Args:
        capacity: episodes.
        steps: T.
        slots: K.
        latent_dim: Z.
    """

    def __init__(self, capacity: int, steps: int, slots: int, latent_dim: int) -> None:
        self.arrays = {
            "slates": torch.zeros((capacity, steps, slots), dtype=torch.int16),
            "clicks": torch.zeros((capacity, steps, slots), dtype=torch.bool),
            "actions": torch.zeros((capacity, steps, latent_dim)),
            "rewards": torch.zeros((capacity, steps)),
        }
        self.capacity = capacity
        self.added = 0

    def add(self, episodes: LatentEpisodes) -> None:
        """Adds whole episodes; the oldest make room."""
        count = len(episodes.rewards)
        places = torch.arange(self.added, self.added + count) % self.capacity
        self.arrays["slates"][places] = torch.from_numpy(episodes.slates[:, :-1])
        self.arrays["clicks"][places] = torch.from_numpy(episodes.clicks[:, :-1])
        self.arrays["actions"][places] = torch.from_numpy(episodes.actions)
        self.arrays["rewards"][places] = torch.from_numpy(episodes.rewards)
        self.added += count

    def sample(self, count: int, generator: torch.Generator) -> Trajectories:
        """`count` episodes drawn with replacement."""
        rows = torch.randint(min(self.added, self.capacity), (count,), generator=generator)
        batch = {key: array[rows] for key, array in self.arrays.items()}
        lengths = torch.full((count,), batch["rewards"].shape[1])
        return Trajectories(batch["slates"].long(), batch["clicks"], batch["actions"], batch["rewards"], lengths)


class AgentTrainer:
    """Collects episodes of many users at once and trains SAC+GeMS on them; can be saved and continued.

    Every policy that set a new best on the validation users is kept, so that a medium agent can be chosen at the end.

    Args:
        environment: simulated environment.
        items: (I, D) float32 item vectors of the simulator; the agent never sees them.
        ranker: trained ranker.
        bounds: action box.
        config: schedule.
        seed: seed of all streams of the training.
    """

    def __init__(
        self,
        environment: Environment,
        items: np.ndarray,
        ranker: GemsRanker,
        bounds: ActionBox,
        config: AgentTraining,
        seed: int,
    ) -> None:
        self.config = config
        self._environment, self._items, self._ranker, self._bounds = environment, items, ranker, bounds
        self._seed = seed
        sizes = ranker.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "agent", "init"))
            belief = GruBelief(sizes.num_items, sizes.slate_size, sizes.item_dim)
            # As in the authors' program, the belief starts from the ranker's item table and goes its own way.
            belief.item_embeddings.load_state_dict(ranker.item_embeddings.state_dict())
            self.sac = SacGems(BehaviorAgent(belief, bounds, config.sac.hidden_size), config.sac)
        self._generator = torch.Generator().manual_seed(stream_seed(seed, "agent", "noise"))
        self._buffer = EpisodeBuffer(
            config.buffer_episodes, environment.episode_length, sizes.slate_size, sizes.latent_dim
        )
        self._pending_updates = 0.0
        self.episodes = 0
        self.updates = 0
        self.random_return = 0.0  # mean return of the last round with random latents
        self.best_return = -np.inf
        self.milestones: list[Milestone] = []  # best last
        self.on_episodes: Callable[[LatentEpisodes], None] = lambda episodes: None  # hears of every round

    @property
    def agent(self) -> BehaviorAgent:
        """The actor under training."""
        return self.sac.agent

    def run(self) -> Iterator[AgentReport]:
        """Trains until the episodes of the schedule are used up; a report per validation interval, one at the end."""
        config = self.config
        losses: list[Tensor] = []
        returns: list[float] = []
        while self.episodes < config.episodes:
            episodes = self._collect()
            self._buffer.add(episodes)
            self.episodes += len(episodes.rewards)
            self.on_episodes(episodes)
            returns.append(float(episodes.rewards.sum(axis=1).mean()))
            if self.episodes <= config.random_episodes:
                self.random_return = returns[-1]
            else:
                self._pending_updates += config.updates_per_episode * len(episodes.rewards)
            while self._pending_updates >= 1:
                self._pending_updates -= 1
                losses.append(self._update())
            is_last = self.episodes >= config.episodes
            if is_last or self.episodes % config.validation_interval < config.users_per_round:
                validation = self.validation_return()
                if validation > self.best_return:
                    self.best_return = validation
                    self.milestones.append(Milestone(self.episodes, validation, flatten_modules({"agent": self.agent})))
                critic, actor = torch.stack(losses).mean(dim=0).tolist() if losses else (np.nan, np.nan)
                alpha = float(self.sac.alpha)
                yield AgentReport(
                    self.episodes, self.updates, validation, float(np.mean(returns)), critic, actor, alpha
                )
                losses, returns = [], []

    def validation_return(self) -> float:
        """Mean return of the deterministic policy on the validation users."""
        users = self.config.validation_users
        episodes = rollout(self._env(users, stream(self._seed, "agent", "validation")), MeanAgent(self.agent))
        return float(episodes.rewards.sum(axis=1).mean())

    def save(self, path: Path) -> None:
        """Writes everything that `load` needs, atomically."""
        state = {
            **flatten_modules(self.sac.modules()),
            **flatten_optimizers(self.sac.optimizers),
            **{f"buffer.{key}": array for key, array in self._buffer.arrays.items()},
            "log_alpha": self.sac.log_alpha.detach(),
            "alpha": self.sac.alpha,
            "generator": self._generator.get_state(),
        }
        for index, milestone in enumerate(self.milestones):
            state |= {f"milestone{index}.{key}": value for key, value in milestone.agent.items()}
        facts = {
            "episodes": self.episodes,
            "updates": self.updates,
            "pending_updates": self._pending_updates,
            "buffer_added": self._buffer.added,
            "random_return": self.random_return,
            "milestone_episodes": [milestone.episodes for milestone in self.milestones],
            "milestone_returns": [milestone.validation_return for milestone in self.milestones],
            "config": asdict(self.config),
        }
        write_checkpoint(path, state, facts)

    def load(self, state: FlatState, facts: dict[str, Any]) -> None:
        """Continues from a checkpoint that `save` wrote.

        Raises:
            CheckpointError: an earlier version wrote it.
        """
        if "milestone_episodes" not in facts:
            raise CheckpointError("the training was begun by an earlier version of gems_ray. Finish it with that one.")
        load_modules(self.sac.modules(), state)
        load_optimizers(self.sac.optimizers, state)
        for key, array in self._buffer.arrays.items():
            array.copy_(state[f"buffer.{key}"])
        with torch.no_grad():
            self.sac.log_alpha.copy_(state["log_alpha"])
        self.sac.alpha = state["alpha"].clone()
        self._generator.set_state(state["generator"])
        self.episodes, self.updates = facts["episodes"], facts["updates"]
        self._pending_updates, self._buffer.added = facts["pending_updates"], facts["buffer_added"]
        self.random_return = facts["random_return"]
        self.milestones = []
        for index, numbers in enumerate(zip(facts["milestone_episodes"], facts["milestone_returns"], strict=True)):
            prefix = f"milestone{index}."
            entries = {key.removeprefix(prefix): entry for key, entry in state.items() if key.startswith(prefix)}
            self.milestones.append(Milestone(*numbers, entries))
        self.best_return = max(facts["milestone_returns"], default=-np.inf)

    def _collect(self) -> LatentEpisodes:
        config = self.config
        rng = stream(self._seed, "agent", "users", self.episodes)
        policy: Policy = SampledAgent(self.agent, self._generator)
        if self.episodes < config.random_episodes:
            policy = RandomLatents(self._bounds, self._generator)
        return rollout(self._env(config.users_per_round, rng), policy)

    def _env(self, users: int, rng: np.random.Generator) -> SlateVectorEnv:
        simulator = TopicRec(self._environment, self._items, users=users, seed=rng)
        return SlateVectorEnv(simulator, self._ranker, self.agent.belief, self._bounds)

    def _update(self) -> Tensor:
        count = self.config.trajectories_per_update
        self.sac.scale_learning_rates(1 - (1 - self.config.final_learning_rate) * self.episodes / self.config.episodes)
        batch = self._buffer.sample(count, self._generator)
        steps, latent_dim = batch.actions.shape[1:]
        next_noise = torch.randn((count, steps - 1, latent_dim), generator=self._generator)
        policy_noise = torch.randn((count, steps, latent_dim), generator=self._generator)
        losses = self.sac.update(batch, next_noise, policy_noise)
        self.updates += 1
        return torch.stack([losses.critic, losses.actor])
