"""Whole trajectories of a dataset: where they lie, what they return."""

from itertools import pairwise

import numpy as np

LONGEST_TRAJECTORY = 1_000  # steps, the limit of CORL's ranking


def trajectory_ends(terminals: np.ndarray) -> np.ndarray:
    """Last rows (E,) int64 of the trajectories; rows after the last terminal are one more, unfinished trajectory.

    Args:
        terminals: (N,) bool, last step of an episode.
    """
    ends = np.flatnonzero(terminals)
    if not len(ends) or ends[-1] != len(terminals) - 1:
        ends = np.append(ends, len(terminals) - 1)
    return ends


def discounted_returns(rewards: np.ndarray, ends: np.ndarray, discount: float) -> tuple[np.ndarray, float]:
    """Return of every trajectory, and the highest return-to-go of any of their steps.

    Args:
        rewards: (N,) float.
        ends: (E,) int64, last rows of the trajectories.
        discount: weight of the next step.
    Returns:
        (E,) float64, and one number.
    """
    lengths = np.diff(ends, prepend=-1)
    to_go = np.zeros(len(ends))
    highest = -np.inf
    for back in range(int(lengths.max())):  # all trajectories at once, from their last steps backwards
        inside = back < lengths
        to_go[inside] = rewards[ends[inside] - back] + discount * to_go[inside]
        highest = max(highest, float(to_go[inside].max()))
    return to_go, highest


def best_trajectories(rewards: np.ndarray, terminals: np.ndarray, fraction: float, discount: float) -> np.ndarray:
    """Rows of the trajectories with the highest discounted returns, best first, each from its start to its end.

    As in CORL, a trajectory also ends after 1,000 steps, and rows at the end of the data that finish none are left out,
    unless there is no trajectory at all.

    Args:
        rewards: (N,) float.
        terminals: (N,) bool, last step of an episode.
        fraction: share of the trajectories that is kept, at least one.
        discount: weight of the next step.
    Returns:
        (n,) int64.
    """
    starts = np.concatenate([[0], np.flatnonzero(terminals) + 1, [len(terminals)]])
    limits = [np.arange(start + LONGEST_TRAJECTORY, end + 1, LONGEST_TRAJECTORY) - 1 for start, end in pairwise(starts)]
    ends = np.union1d(np.flatnonzero(terminals), np.concatenate(limits)).astype(np.int64)
    if not len(ends):
        return np.arange(len(rewards))
    starts = np.concatenate([[0], ends[:-1] + 1])
    returns, _ = discounted_returns(rewards, ends, discount)
    best = np.argsort(returns)[::-1][: max(1, int(fraction * len(ends)))]
    return np.concatenate([np.arange(starts[index], ends[index] + 1) for index in best])
