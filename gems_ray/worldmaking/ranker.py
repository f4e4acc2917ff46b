"""Training of the GeMS ranker on logged sessions."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from gems_ray.action_box import ActionBox
from gems_ray.checkpoints import write_checkpoint
from gems_ray.envs.rollout import SlateEpisodes, rollout_slates
from gems_ray.flat_state import FlatState, flatten_modules, flatten_optimizers, load_modules, load_optimizers
from gems_ray.policies.slates import SlatePolicy
from gems_ray.rng import stream, stream_seed
from gems_ray.simulator import Environment, TopicRec
from gems_ray.world.ranker import BOUNDS_SESSIONS, GemsRanker, RankerConfig

USERS_AT_ONCE = 1_000
VALIDATION_BLOCK = 4_096


@dataclass(frozen=True, slots=True)
class RankerTraining:
    """Schedule of the ranker's training."""

    sessions: int = 20_000  # logged episodes of the epsilon-greedy oracle; the paper logs 100,000
    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 1e-3
    validation_share: float = 0.1  # first sessions, held out


@dataclass(frozen=True, slots=True)
class RankerEpoch:
    """Mean losses of one epoch."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_slate_loss: float
    validation_click_loss: float
    validation_kl: float


def log_sessions(environment: Environment, items: np.ndarray, count: int, seed: int) -> SlateEpisodes:
    """Sessions of the epsilon-greedy oracle, the ranker's training data.

    Args:
        environment: simulated environment.
        items: (I, D) float32 item vectors.
        count: episodes.
        seed: the same seed gives the same sessions.
    """
    parts = []
    for batch, start in enumerate(range(0, count, USERS_AT_ONCE)):
        users = min(USERS_AT_ONCE, count - start)
        simulator = TopicRec(environment, items, users=users, seed=stream(seed, "sessions", batch))
        slates = stream(seed, "sessions", batch, "slates")
        parts.append(rollout_slates(simulator, SlatePolicy("epsilon_greedy_oracle", environment, slates)))
    columns = ("slates", "clicks", "rewards", "bored_topics")
    return SlateEpisodes(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def action_box_of(ranker: GemsRanker, sessions: SlateEpisodes) -> ActionBox:
    """The action box that the first sessions span.

    Args:
        ranker: that encodes their slates.
        sessions: logged episodes; their first slate is the same for everyone and is left out.
    """
    slots = sessions.slates.shape[-1]
    slates = sessions.slates[:BOUNDS_SESSIONS, 1:].reshape(-1, slots).astype(np.int64)
    clicks = sessions.clicks[:BOUNDS_SESSIONS, 1:].reshape(-1, slots)
    return ranker.action_box(torch.from_numpy(slates), torch.from_numpy(clicks))


class RankerTrainer:
    """Trains a ranker, keeps the weights of the best epoch, can be saved and continued after any epoch.

    Args:
        sessions: logged episodes; their first slate is the same for everyone and is left out.
        ranker_config: sizes and loss weights.
        config: schedule.
        seed: seed of initialisation, order and noise.
    """

    def __init__(self, sessions: SlateEpisodes, ranker_config: RankerConfig, config: RankerTraining, seed: int) -> None:
        self.config = config
        self._slates = torch.from_numpy(sessions.slates[:, 1:].reshape(-1, ranker_config.slate_size))
        self._clicks = torch.from_numpy(sessions.clicks[:, 1:].reshape(self._slates.shape))
        self._held_out = int(len(self._slates) * config.validation_share)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(seed, "ranker", "init"))
            self._ranker = GemsRanker(ranker_config)
            self.best = GemsRanker(ranker_config)
        self._optimizer = torch.optim.Adam(self._ranker.parameters(), lr=config.learning_rate, fused=True)
        self._generator = torch.Generator().manual_seed(stream_seed(seed, "ranker", "noise"))
        self._best_loss = np.inf
        self.epoch = 0

    def run(self) -> Iterator[RankerEpoch]:
        """Trains the remaining epochs, one report each; `best` holds the best weights so far."""
        while self.epoch < self.config.epochs:
            self.epoch += 1
            train_loss = self._train_epoch()
            validation = self._validate()
            if validation[0] < self._best_loss:
                self._best_loss = validation[0]
                self.best.load_state_dict(self._ranker.state_dict())
            yield RankerEpoch(self.epoch, train_loss, *validation)

    def save(self, path: Path) -> None:
        """Writes everything that `load` needs, atomically."""
        state = {
            **flatten_modules({"ranker": self._ranker, "best": self.best}),
            **flatten_optimizers({"ranker": self._optimizer}),
            "generator": self._generator.get_state(),
        }
        facts = {"epoch": self.epoch, "best_loss": self._best_loss}
        write_checkpoint(path, state, facts)

    def load(self, state: FlatState, facts: dict[str, float]) -> None:
        """Continues from a checkpoint that `save` wrote."""
        load_modules({"ranker": self._ranker, "best": self.best}, state)
        load_optimizers({"ranker": self._optimizer}, state)
        self._generator.set_state(state["generator"])
        self.epoch, self._best_loss = int(facts["epoch"]), facts["best_loss"]

    def _train_epoch(self) -> float:
        config, latent_dim = self.config, self._ranker.config.latent_dim
        count = len(self._slates) - self._held_out
        order = self._held_out + torch.randperm(count, generator=self._generator)
        total = torch.zeros(())
        for rows in order.split(config.batch_size):
            noise = torch.randn((len(rows), latent_dim), generator=self._generator)
            loss = self._ranker.loss(self._slates[rows].long(), self._clicks[rows], noise).total
            self._optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self._optimizer.step()
            total += len(rows) * loss.detach()
        return float(total / count)

    @torch.no_grad()
    def _validate(self) -> tuple[float, float, float, float]:
        """Mean total, slate, click and KL losses of the held-out sessions, without noise."""
        sums = torch.zeros(4)
        for rows in torch.arange(self._held_out).split(VALIDATION_BLOCK):
            loss = self._ranker.loss(self._slates[rows].long(), self._clicks[rows])
            sums += len(rows) * torch.stack([loss.total, loss.slate, loss.click, loss.kl])
        total, slate, click, kl = (sums / self._held_out).tolist()
        return total, slate, click, kl
