"""Evidence on the learnt values: where Q stands, and what the rewards can pay at most."""

import numpy as np
import torch

from gems_ray import metrics
from gems_ray.algorithms import Algorithm
from gems_ray.data.replay import Batch, ReplayBuffer
from gems_ray.rng import stream

PROBE_ROWS = 2_048


class Diagnostics:
    """Looks at an algorithm on a fixed sample of its dataset.

    Args:
        buffer: normalised transitions.
        bound: highest discounted return-to-go of the dataset.
        action_dim: Z.
    """

    def __init__(self, buffer: ReplayBuffer, bound: float, action_dim: int) -> None:
        rng = stream(0, "diagnostics")
        rows = torch.from_numpy(rng.integers(len(buffer), size=min(PROBE_ROWS, len(buffer))))
        self._probe: Batch = buffer.rows(rows.to(buffer.device))
        uniform = rng.uniform(-1, 1, size=(len(rows), action_dim)).astype(np.float32)
        self._random_actions = torch.from_numpy(uniform).to(buffer.device)
        self._bound = bound

    @torch.no_grad()
    def __call__(self, algorithm: Algorithm) -> dict[str, float]:
        """Cloning error, and Q at dataset, policy and random actions where there is a critic."""
        probe = self._probe
        chosen = algorithm.policy(probe.states)
        report = {metrics.CLONING_ERROR: float((chosen - probe.actions).square().mean())}
        at_policy = algorithm.q_values(probe.states, chosen)
        at_dataset = algorithm.q_values(probe.states, probe.actions)
        at_random = algorithm.q_values(probe.states, self._random_actions)
        if at_policy is not None and at_dataset is not None and at_random is not None:
            report |= {
                metrics.Q_DATASET: float(at_dataset.mean()),
                metrics.Q_POLICY: float(at_policy.mean()),
                metrics.Q_RANDOM: float(at_random.mean()),
                metrics.Q_BOUND: self._bound,
                metrics.Q_ABOVE_BOUND: float((at_policy > self._bound).float().mean()),
            }
        return report


def highest_return_to_go(rewards: np.ndarray, terminals: np.ndarray, discount: float) -> float:
    """The largest discounted sum of rewards from any step to the end of its episode.

    Args:
        rewards: (N,) float.
        terminals: (N,) bool, last step of an episode; the last row ends one in any case.
        discount: weight of the next step.
    """
    ends = np.flatnonzero(terminals)
    if not len(ends) or ends[-1] != len(rewards) - 1:
        ends = np.append(ends, len(rewards) - 1)
    lengths = np.diff(ends, prepend=-1)
    to_go = np.zeros(len(ends))
    highest = -np.inf
    for back in range(int(lengths.max())):  # all episodes at once, from their last steps backwards
        inside = back < lengths
        to_go[inside] = rewards[ends[inside] - back] + discount * to_go[inside]
        highest = max(highest, float(to_go[inside].max()))
    return highest
