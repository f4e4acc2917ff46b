"""Whole trajectories of a dataset: where they lie, what they return."""

from collections.abc import Mapping
from itertools import accumulate, pairwise

import numpy as np

LONGEST_TRAJECTORY = 1_000  # steps, the limit of CORL's ranking


def last_steps(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Whether a row is the last step of its episode (N,) bool: a terminal one, or one that a time limit cut off.

    Args:
        arrays: `terminals` (N,) bool, and `timeouts` (N,) bool where the dataset has them, as D4RL's do.
    """
    terminals, timeouts = arrays["terminals"], arrays.get("timeouts")
    return terminals.astype(bool) if timeouts is None else np.logical_or(terminals, timeouts)


def trajectory_ends(last: np.ndarray) -> np.ndarray:
    """Last rows (E,) int64 of the trajectories; rows after the last episode's end are one more, unfinished trajectory.

    Args:
        last: (N,) bool, last step of an episode.
    """
    ends = np.flatnonzero(last)
    if not len(ends) or ends[-1] != len(last) - 1:
        ends = np.append(ends, len(last) - 1)
    return ends


def returns_to_go(rewards: np.ndarray, ends: np.ndarray, discount: float) -> np.ndarray:
    """Discounted return (N,) float64 from every step to the end of its trajectory.

    Args:
        rewards: (N,) float.
        ends: (E,) int64, last rows of the trajectories.
        discount: weight of the next step.
    """
    lengths = np.diff(ends, prepend=-1)
    to_go = np.zeros(len(rewards))
    if lengths.max() > len(ends):  # few long trajectories, in the extreme a file without any terminal: one by one
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            backwards = rewards[end - length + 1 : end + 1][::-1].astype(np.float64).tolist()
            sums = accumulate(backwards, lambda running, reward: reward + discount * running)
            to_go[end - length + 1 : end + 1] = np.fromiter(sums, dtype=np.float64, count=length)[::-1]
        return to_go
    running = np.zeros(len(ends))
    for back in range(int(lengths.max())):  # all trajectories at once, from their last steps backwards
        inside = back < lengths
        rows = ends[inside] - back
        running[inside] = rewards[rows] + discount * running[inside]
        to_go[rows] = running[inside]
    return to_go


def best_trajectories(rewards: np.ndarray, last: np.ndarray, fraction: float, discount: float) -> np.ndarray:
    """Rows of the trajectories with the highest discounted returns, best first, each from its start to its end.

    As in CORL, a trajectory also ends after 1,000 steps, and rows at the end of the data that finish none are left out,
    unless there is no trajectory at all.

    Args:
        rewards: (N,) float.
        last: (N,) bool, last step of an episode.
        fraction: share of the trajectories that is kept, at least one.
        discount: weight of the next step.
    Returns:
        (n,) int64.
    """
    starts = np.concatenate([[0], np.flatnonzero(last) + 1, [len(last)]])
    limits = [np.arange(start + LONGEST_TRAJECTORY, end + 1, LONGEST_TRAJECTORY) - 1 for start, end in pairwise(starts)]
    ends = np.union1d(np.flatnonzero(last), np.concatenate(limits)).astype(np.int64)
    if not len(ends):
        return np.arange(len(rewards))
    starts = np.concatenate([[0], ends[:-1] + 1])
    returns = returns_to_go(rewards, ends, discount)[starts]
    best = np.argsort(returns)[::-1][: max(1, int(fraction * len(ends)))]
    return np.concatenate([np.arange(starts[index], ends[index] + 1) for index in best])
