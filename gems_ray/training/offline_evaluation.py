"""Fitted Q evaluation: what a policy would earn, estimated from logged episodes alone.

Le, Voloshin & Yue 2019, Batch Policy Learning under Constraints; Voloshin et al. 2021 compare it with others.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from gems_ray.algorithms import Algorithm
from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import soft_update
from gems_ray.data.replay import Normalizer
from gems_ray.data.trajectories import discounted_returns, trajectory_ends
from gems_ray.errors import DatasetError
from gems_ray.rng import stream, stream_seed

HIDDEN_SIZES = (256, 256)
BATCH_SIZE = 256
LEARNING_RATE = 3e-4
TAU = 0.05  # targets follow within some twenty updates
# The critic first learns what the logged actions earned, then moves on to the policy. More updates of the second kind
# would exploit the few actions that the logs hold: on mixed data of 200 to 300 episodes the rank correlation with the
# simulator rises up to some 400 and falls beyond 800 (docs/algorithms/README.md).
UPDATES_ON_RETURNS, UPDATES_ON_POLICY = 500, 400
BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class OfflineEvaluation:
    """What held-out episodes say about a policy."""

    fqe_value: float  # estimated discounted return, clicks, mean over the first states of the episodes
    fqe_se: float  # standard error of that mean over episodes; the error of the critic is not in it
    behavior_value: float  # discounted return that was logged, mean over the same episodes
    cloning_error: float  # mean squared distance of policy and logged actions, normalised units
    episodes: int


def hold_out(terminals: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows of a dataset by whole episodes, alike for every trial and seed.

    Args:
        terminals: (N,) bool, last step of an episode.
        share: of the episodes that is held out; at least one, and not all.
    Returns:
        (n,) int64 rows to train on and (N - n,) int64 rows that are held out, both ascending.
    Raises:
        DatasetError: there are fewer than two episodes.
    """
    ends = trajectory_ends(terminals)
    if len(ends) < 2:
        raise DatasetError("evaluation.holdout: the dataset has one episode, so none can be held out. Set it to 0.")
    count = min(max(round(share * len(ends)), 1), len(ends) - 1)
    held_out = np.zeros(len(ends), dtype=bool)
    held_out[stream(0, "offline", "holdout").permutation(len(ends))[:count]] = True
    rows = np.repeat(held_out, np.diff(ends, prepend=-1))
    return np.flatnonzero(~rows), np.flatnonzero(rows)


class OfflineEvaluator:
    """Fits the Q-function of a policy to held-out episodes.

    Args:
        arrays: the five required arrays of the dataset format.
        rows: (n,) int64, rows of whole episodes.
        discount: weight of the next step.
        device: where the critic is fitted.
        seed: of its initial weights and batches.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        rows: np.ndarray,
        *,
        discount: float,
        device: str | torch.device,
        seed: int = 0,
    ) -> None:
        self._arrays, self._rows = arrays, rows
        self._discount, self._device, self._seed = discount, torch.device(device), seed
        terminals, self._rewards = arrays["terminals"][rows], arrays["rewards"][rows].astype(np.float32)
        self._ends = trajectory_ends(terminals)
        self._terminals = terminals.astype(np.float32)
        lengths = np.diff(self._ends, prepend=-1)
        self._starts = self._ends - lengths + 1
        step = np.arange(len(rows)) - np.repeat(self._starts, lengths)
        # Beliefs do not tell how much of the episode is left, and the value depends on it.
        self._time = (step / lengths.max()).astype(np.float32)[:, None]
        self._time_step = float(1 / lengths.max())
        annuity = sum(discount**t for t in range(int(lengths.max())))
        self._bounds = (min(0.0, float(self._rewards.min())) * annuity, max(0.0, float(self._rewards.max())) * annuity)

    def __call__(self, algorithm: Algorithm, normalizer: Normalizer) -> OfflineEvaluation:
        """Evaluates what an algorithm has learnt; its own state and random numbers stay as they are.

        Args:
            algorithm: whose policy is evaluated.
            normalizer: of its training data.
        """
        states, chosen = self._features("observations", algorithm, normalizer, self._time)
        following, next_chosen = self._features(
            "next_observations", algorithm, normalizer, self._time + self._time_step
        )
        logged = normalizer.actions(self._column("actions"))
        values = self._fit(
            torch.cat([states, logged], dim=1),
            torch.cat([following, next_chosen], dim=1),
            torch.cat([states, chosen], dim=1)[torch.from_numpy(self._starts).to(self._device)],
        )
        returns, _ = discounted_returns(self._rewards, self._ends, self._discount)
        deviation = values.std(ddof=1) if len(values) > 1 else 0.0
        return OfflineEvaluation(
            fqe_value=float(values.mean()),
            fqe_se=float(deviation / np.sqrt(len(values))),
            behavior_value=float(returns.mean()),
            cloning_error=float((chosen - logged).square().mean()),
            episodes=len(values),
        )

    def _fit(self, logged: Tensor, following: Tensor, first: Tensor) -> np.ndarray:
        """Values (E,) of the first states under the policy."""
        to_go = torch.from_numpy(returns_to_go(self._rewards, self._ends, self._discount)).to(self._device)
        rewards = torch.from_numpy(self._rewards).to(self._device)
        terminals = torch.from_numpy(self._terminals).to(self._device)
        # In units of the logged returns: a fresh network starts at the right scale.
        center, scale = to_go.mean(), to_go.std() + 1e-6
        lowest, highest = ((bound - center) / scale for bound in self._bounds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(self._seed, "offline", "init"))
            critic, target = (_critic(logged.shape[1]).to(self._device) for _ in range(2))
        target.load_state_dict(critic.state_dict())
        optimizer = Adam(critic.parameters(), LEARNING_RATE)
        generator = torch.Generator().manual_seed(stream_seed(self._seed, "offline", "batch"))
        parameters, targets = list(critic.parameters()), list(target.parameters())
        for update in range(UPDATES_ON_RETURNS + UPDATES_ON_POLICY):
            rows = torch.randint(len(logged), (BATCH_SIZE,), generator=generator).to(self._device)
            if update < UPDATES_ON_RETURNS:
                aim = (to_go[rows] - center) / scale
            else:
                with torch.no_grad():
                    next_value = center + scale * target(following[rows]).squeeze(1)
                    aim = (rewards[rows] + self._discount * (1 - terminals[rows]) * next_value - center) / scale
                aim = aim.clamp(lowest, highest)  # no value passes what the rewards can pay
            optimizer.minimize((critic(logged[rows]).squeeze(1) - aim).square().mean())
            soft_update(targets, parameters, TAU)
        with torch.no_grad():
            return (center + scale * target(first).squeeze(1)).double().cpu().numpy()

    @torch.no_grad()
    def _features(
        self, name: str, algorithm: Algorithm, normalizer: Normalizer, time: np.ndarray
    ) -> tuple[Tensor, Tensor]:
        """Normalised states with the time in the episode, and the policy's actions in them."""
        states = normalizer.states(self._column(name))
        actions = torch.cat([algorithm.policy(block) for block in states.split(BLOCK_ROWS)])
        return torch.cat([states, torch.from_numpy(2 * time - 1).to(self._device)], dim=1), actions

    def _column(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name][self._rows].astype(np.float32)).to(self._device)


def returns_to_go(rewards: np.ndarray, ends: np.ndarray, discount: float) -> np.ndarray:
    """Discounted return (N,) float32 from every step to the end of its episode.

    Args:
        rewards: (N,) float.
        ends: (E,) int64, last rows of the episodes.
        discount: weight of the next step.
    """
    lengths = np.diff(ends, prepend=-1)
    to_go = np.zeros(len(rewards), dtype=np.float32)
    running = np.zeros(len(ends))
    for back in range(int(lengths.max())):  # all episodes at once, from their last steps backwards
        inside = back < lengths
        rows = ends[inside] - back
        running[inside] = rewards[rows] + discount * running[inside]
        to_go[rows] = running[inside]
    return to_go


def _critic(inputs: int) -> nn.Sequential:
    """A multilayer perceptron whose layer norms keep it from growing where there is no data (Ball et al. 2023)."""
    layers: list[nn.Module] = []
    for size, following in pairwise((inputs, *HIDDEN_SIZES)):
        layers += [nn.Linear(size, following), nn.LayerNorm(following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN_SIZES[-1], 1))
