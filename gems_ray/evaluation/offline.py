"""Fitted Q evaluation: what a policy would earn, estimated from logged episodes alone.

Le, Voloshin & Yue 2019, Batch Policy Learning under Constraints; Voloshin et al. 2021 compare it with others.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gems_ray.algorithms.adam import Adam
from gems_ray.algorithms.base import soft_update
from gems_ray.data.normalizer import Normalizer
from gems_ray.data.trajectories import last_steps, returns_to_go, trajectory_ends
from gems_ray.errors import DatasetError
from gems_ray.evaluation.record import OfflineEvaluation
from gems_ray.policies.base import Policy
from gems_ray.rng import stream, stream_seed

# Critics agree where there is data and not elsewhere. One of 256 x 256 costs as much and depends on its seed: from one
# to the next its estimate moves by up to 100 clicks for policies far from the data, these eight by a third of that.
CRITICS = 8
HIDDEN_SIZES = (64, 64)
BATCH_SIZE = 256  # per critic
LEARNING_RATE = 1e-3
TAU = 0.05  # a target forgets its past within some twenty updates
# The critics first learn what the logged actions earned, then move on to the policy. The second kind of update adds up
# errors at actions that the logs do not hold: the estimates are best after about 400 and useless after 2,000.
UPDATES_ON_RETURNS, UPDATES_ON_POLICY = 500, 400
DISCOUNT = 0.99  # the same for every policy, whatever its own: estimates are compared with each other
BLOCK_ROWS = 16_384  # rows whose actions are computed at once


def hold_out(last: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Splits the rows of a dataset by whole episodes, alike for every trial and seed.

    Args:
        last: (N,) bool, last step of an episode.
        share: of the episodes that is held out; at least one, and not all.
    Returns:
        (n,) int64 rows to train on and (N - n,) int64 rows that are held out, both ascending.
    Raises:
        DatasetError: there are fewer than two episodes.
    """
    ends = trajectory_ends(last)
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
        arrays: the required arrays of the dataset format, and `timeouts` where there are any.
        rows: (n,) int64, rows of whole episodes.
        normalizer: units of the critics' inputs; the critics are fitted where its tensors lie.
        discount: weight of the next step.
        seed: of the critics' initial weights and batches.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        rows: np.ndarray,
        normalizer: Normalizer,
        *,
        discount: float = DISCOUNT,
        seed: int = 0,
    ) -> None:
        self._arrays, self._rows, self._normalizer = arrays, rows, normalizer
        self._discount, self._device, self._seed = discount, normalizer.state_mean.device, seed
        self._terminals = arrays["terminals"][rows].astype(np.float32)
        self._rewards = arrays["rewards"][rows].astype(np.float32)
        self._ends = trajectory_ends(last_steps(arrays)[rows])
        lengths = np.diff(self._ends, prepend=-1)
        self._starts = self._ends - lengths + 1
        self._longest = int(lengths.max())
        self._steps = (np.arange(len(rows)) - np.repeat(self._starts, lengths)).astype(np.float32)

    @torch.no_grad()
    def __call__(self, policy: Policy) -> OfflineEvaluation:
        """Evaluates a policy that chooses latents; the networks of a learned one stay as they are."""
        normalizer = self._normalizer
        chosen, next_chosen = self._replay(policy) if policy.initial_state(1) is not None else self._play(policy)
        # Room for all pairs of state and action that the critics see; blocks fill it, so that no more is copied.
        width = 1 + self._arrays["observations"].shape[1] + self._arrays["actions"].shape[1]
        logged, following = (torch.empty(len(self._rows), width, device=self._device) for _ in range(2))
        first = torch.empty(len(self._starts), width, device=self._device)
        distance = 0.0
        for block in self._blocks():
            time, states = self._time(self._steps[block]), normalizer.states(self._column("observations", block))
            actions = normalizer.actions(self._column("actions", block))
            distance += float((chosen[block] - actions).square().sum(dtype=torch.float64))
            logged[block] = torch.cat([time, states, actions], dim=1)
            low, high = np.searchsorted(self._starts, (block.start, block.stop))
            inside = torch.from_numpy(self._starts[low:high] - block.start).to(self._device)
            first[low:high] = torch.cat([time, states, chosen[block]], dim=1)[inside]
            states = normalizer.states(self._column("next_observations", block))
            time = self._time(self._steps[block] + 1)
            following[block] = torch.cat([time, states, next_chosen[block]], dim=1)
        values = self._fit(logged, following, first)
        of_critics, of_episodes = values.mean(axis=1), values.mean(axis=0)
        returns = returns_to_go(self._rewards, self._ends, self._discount)[self._starts]
        episodes = len(returns)
        return OfflineEvaluation(
            fqe_value=float(values.mean()),
            fqe_se=float(of_episodes.std(ddof=1) / np.sqrt(episodes)) if episodes > 1 else 0.0,
            fqe_spread=float(of_critics.std(ddof=1)),
            behavior_value=float(returns.mean()),
            cloning_error=distance / (len(self._rows) * actions.shape[1]),
            episodes=episodes,
        )

    def _play(self, policy: Policy) -> tuple[Tensor, Tensor]:
        """What a policy does at every observation and every next observation: two (n, Z) in normalised units."""
        chosen = []
        for name in ("observations", "next_observations"):
            latents = [policy.act(self._column(name, block), None, None)[0] for block in self._blocks()]
            chosen.append(self._normalizer.actions(torch.cat(latents).to(self._device)))
        return chosen[0], chosen[1]

    def _replay(self, policy: Policy) -> tuple[Tensor, Tensor]:
        """The same for a policy with a memory: the episodes are its users, and it remembers what was logged."""
        shape = (len(self._rows), self._arrays["actions"].shape[1])
        chosen, following = torch.empty(shape), torch.empty(shape)
        lengths = self._ends - self._starts + 1
        state, rewards = policy.initial_state(len(lengths)), None
        for step in range(self._longest + 1):
            going_on = step < lengths  # an episode that is over stays at what followed its last step
            rows = self._rows[np.minimum(self._starts + step, self._ends)]
            now, after = (self._arrays[name][rows] for name in ("observations", "next_observations"))
            actions, state = policy.act(np.where(going_on[:, None], now, after), state, rewards)
            state = policy.replace_actions(state, torch.from_numpy(self._arrays["actions"][rows]))
            rewards = self._arrays["rewards"][rows].astype(np.float32)
            chosen[self._starts[going_on] + step] = actions.cpu()[going_on]
            if step:
                followed = step <= lengths
                following[self._starts[followed] + step - 1] = actions.cpu()[followed]
        return self._normalizer.actions(chosen.to(self._device)), self._normalizer.actions(following.to(self._device))

    def _fit(self, logged: Tensor, following: Tensor, first: Tensor) -> np.ndarray:
        """Every critic's value of the first states under the policy.

        Args:
            logged: (n, 1 + H + Z), time, states and logged actions.
            following: (n, 1 + H + Z), the same of the next steps, with the policy's actions.
            first: (E, 1 + H + Z), of the first steps, with the policy's actions.
        Returns:
            (CRITICS, E) float64, clicks.
        """
        returns = returns_to_go(self._rewards, self._ends, self._discount).astype(np.float32)
        # In units of the logged returns, since a network that starts at 0 takes long to reach hundreds of clicks.
        center, scale = float(returns.mean()), float(returns.std()) or 1.0
        to_go = torch.from_numpy((returns - center) / scale).to(self._device)
        rewards = torch.from_numpy((self._rewards - center) / scale).to(self._device)
        going_on = torch.from_numpy(self._discount * (1 - self._terminals)).to(self._device)
        annuity = sum(self._discount**step for step in range(self._longest))
        lowest = (min(0.0, float(self._rewards.min())) * annuity - center) / scale
        highest = (max(0.0, float(self._rewards.max())) * annuity - center) / scale

        generator = torch.Generator().manual_seed(stream_seed(self._seed, "offline", "critics"))
        critics = _Critics((logged.shape[1], *HIDDEN_SIZES, 1), generator).to(self._device)
        targets = _Critics((logged.shape[1], *HIDDEN_SIZES, 1), generator).to(self._device)
        targets.load_state_dict(critics.state_dict())
        optimizer = Adam(critics.parameters(), LEARNING_RATE)
        for update in range(UPDATES_ON_RETURNS + UPDATES_ON_POLICY):
            rows = torch.randint(len(logged), (CRITICS, BATCH_SIZE), generator=generator).to(self._device)
            if update < UPDATES_ON_RETURNS:
                aim = to_go[rows]
            else:
                aim = rewards[rows] + going_on[rows] * (targets(following[rows]) + center / scale)
                aim = aim.clamp(lowest, highest)  # what the rewards can pay
            with torch.enable_grad():
                # A sum over critics, since no critic's step may depend on how many there are.
                loss = (critics(logged[rows]) - aim).square().mean(dim=1).sum()
                optimizer.minimize(loss)
            soft_update(list(targets.parameters()), list(critics.parameters()), TAU)
        values = targets(first.expand(CRITICS, -1, -1))
        return (center + scale * values.double()).cpu().numpy()

    def _blocks(self) -> Iterator[slice]:
        """All held-out rows, by position, a block at a time."""
        for start in range(0, len(self._rows), BLOCK_ROWS):
            yield slice(start, min(start + BLOCK_ROWS, len(self._rows)))

    def _column(self, name: str, block: slice) -> Tensor:
        return torch.from_numpy(self._arrays[name][self._rows[block]]).to(self._device, torch.float32)

    def _time(self, steps: np.ndarray) -> Tensor:
        """Steps (n,) as an input (n, 1) from -1 to 1: the value depends on what is left of the episode.

        States do not tell it, and without it an estimate on mixed data orders policies far worse.
        """
        return torch.from_numpy(2 * steps / self._longest - 1)[:, None].to(self._device)


class _Critics(nn.Module):
    """Independent perceptrons of the same shape, evaluated at once: (CRITICS, B, inputs) to (CRITICS, B).

    Layer norms keep them from growing where there is no data (Ball et al. 2023).
    """

    def __init__(self, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for inputs, outputs in pairwise(sizes):  # as torch.nn.Linear starts
            for parameters, rows in ((self.weights, inputs), (self.biases, 1)):
                uniform = torch.rand(CRITICS, rows, outputs, generator=generator)
                parameters.append(nn.Parameter((2 * uniform - 1) / inputs**0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        """Every critic's value of its own inputs."""
        *hidden, last = zip(self.weights, self.biases, strict=True)
        for weight, bias in hidden:
            inputs = torch.baddbmm(bias, inputs, weight)
            inputs = F.relu(F.layer_norm(inputs, inputs.shape[-1:]))
        return torch.baddbmm(last[1], inputs, last[0]).squeeze(-1)
