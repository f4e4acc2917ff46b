"""What a handful of seeds can tell: robust means, intervals, probabilities and tests.

The functions are pure: numbers and a generator in, numbers out. A *stratum* is the results of one algorithm in one
environment, a number per seed. What is not measured is left out before: no number may be NaN.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, ndtri, stdtr, stdtrit

Values = NDArray[np.float64]
Strata = Sequence[ArrayLike]
# Takes the strata, each (..., n), and gives (...): the same for the data as for many resamples of it at once.
Statistic = Callable[[Sequence[Values]], Values]

REPLICATES = 2_000  # resamples of a bootstrap; the ends of an interval move by some percent of its width from R to R
PERMUTATIONS = 5_000
LEVEL = 0.95
PAIRS = 10_000_000  # of runs that are compared at once


class Interval(NamedTuple):
    """An interval that holds the true value in 95 of 100 experiments, if that is its level; NaN where unknown."""

    low: float
    high: float


UNKNOWN = Interval(np.nan, np.nan)


def interquartile_mean(values: ArrayLike) -> Values:
    """Mean of the middle half: a quarter of the numbers, rounded down, is left out at either end (Agarwal et al. 2021).

    Args:
        values: (..., n), any order, n at least 1.
    Returns:
        (...): of the last axis. Up to three numbers it is their mean.
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    count = ordered.shape[-1]
    cut = count // 4
    return ordered[..., cut : count - cut].mean(axis=-1)


def pooled_interquartile_mean(strata: Sequence[Values]) -> Values:
    """Interquartile mean of all strata together: every run of every environment has the same weight.

    Args:
        strata: (..., n) each, on one scale, such as scores.
    Returns:
        (...).
    """
    return interquartile_mean(np.concatenate(strata, axis=-1))


def mean_of_strata(strata: Sequence[Values]) -> Values:
    """Mean over the strata of their means: every environment has the same weight.

    Args:
        strata: (..., n) each.
    Returns:
        (...).
    """
    return np.mean([stratum.mean(axis=-1) for stratum in strata], axis=0)


def resample(strata: Strata, rng: np.random.Generator, replicates: int = REPLICATES) -> list[Values]:
    """Draws seeds with replacement within every stratum, so that every environment keeps its number of runs.

    Args:
        strata: (n,) each.
        rng: draws the seeds.
        replicates: R, how often.
    Returns:
        (R, n) for every stratum.
    """
    data = [np.asarray(stratum, dtype=float) for stratum in strata]
    return [stratum[rng.integers(len(stratum), size=(replicates, len(stratum)))] for stratum in data]


def percentile_interval(values: ArrayLike, level: float = LEVEL) -> Interval:
    """The middle share of the values that a statistic had on resamples: the interval of Agarwal et al. 2021.

    Args:
        values: (R,), of R resamples.
        level: the share, for example 0.95.
    """
    low, high = np.quantile(np.asarray(values, dtype=float), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def bootstrap_interval(
    strata: Strata,
    statistic: Statistic,
    rng: np.random.Generator,
    level: float = LEVEL,
    replicates: int = REPLICATES,
    *,
    pooled: bool = False,
) -> Interval:
    """Stratified bootstrap interval, widened for few seeds.

    The resamples and their percentiles are those of Agarwal et al. 2021. With n seeds, resamples spread less than
    new seeds would, by the root of (n - 1) / n, and the spread itself is known badly, as in Student's t. So both
    ends are moved away from the statistic by the root of n / (n - 1) and by the ratio of Student's quantile to the
    normal one (Hesterberg 2015, section 4): a factor of 2.7 for three seeds in one environment, of 1.1 for ten
    seeds in three environments, and 1 for many.

    Args:
        strata: (n,) each; environments of an algorithm, or of two that are compared.
        statistic: of the strata.
        rng: draws the resamples.
        level: how often the interval shall hold the true value.
        replicates: resamples.
        pooled: whether the statistic puts the numbers of all strata together; else every stratum has the same weight.
    Returns:
        NaN where a stratum has fewer than two numbers, since one seed says nothing of the spread.
    """
    data = [np.asarray(stratum, dtype=float) for stratum in strata]
    if not data or min(map(len, data)) < 2:
        return UNKNOWN
    center = float(statistic(data))
    found = percentile_interval(statistic(resample(data, rng, replicates)), level)
    factor = _small_sample_factor([len(stratum) for stratum in data], level, pooled)
    return Interval(center - factor * (center - found.low), center + factor * (found.high - center))


def _small_sample_factor(counts: Sequence[int], level: float, pooled: bool) -> float:
    """How much wider the interval must be than the percentiles of the resamples, if all strata spread alike.

    Few seeds in one stratum are not made up for by many in another one: the degrees of freedom are those of Welch and
    Satterthwaite.

    Args:
        counts: seeds in every stratum, 2 or more each.
        level: of the interval.
        pooled: as in `bootstrap_interval`.
    """
    seeds = np.asarray(counts, dtype=float)
    weights = seeds / seeds.sum() if pooled else np.full(len(seeds), 1 / len(seeds))
    fresh = weights**2 / seeds  # what each stratum adds to the variance of new seeds
    resampled = fresh * (seeds - 1) / seeds
    freedom = fresh.sum() ** 2 / (fresh**2 / (seeds - 1)).sum()
    quantile = (1 + level) / 2
    return float(stdtrit(freedom, quantile) / ndtri(quantile) * np.sqrt(fresh.sum() / resampled.sum()))


def probability_of_improvement(ours: Strata, theirs: Strata) -> float:
    """How often a run of ours is better than one of theirs, mean over environments (Agarwal et al. 2021).

    Args:
        ours: (n,) for every environment; a larger number is better.
        theirs: (m,) for the same environments in the same order.
    Returns:
        0 to 1. Equal numbers count half, so two equal algorithms have 0.5.
    """
    return float(_improvement([*ours, *theirs]))


def _improvement(strata: Strata) -> Values:
    """The same for many resamples at once.

    Args:
        strata: (..., n) of ours for every environment, then (..., m) of theirs.
    Returns:
        (...).
    """
    data = [np.asarray(stratum, dtype=float) for stratum in strata]
    half = len(data) // 2
    shares = []
    for mine, other in zip(data[:half], data[half:], strict=True):
        pairs = mine[..., :, None], other[..., None, :]
        shares.append((np.greater(*pairs).mean(axis=(-2, -1)) + np.greater_equal(*pairs).mean(axis=(-2, -1))) / 2)
    return np.mean(shares, axis=0)


def improvement_interval(
    ours: Strata, theirs: Strata, rng: np.random.Generator, level: float = LEVEL, replicates: int = REPLICATES
) -> Interval:
    """Stratified bootstrap interval of the probability of improvement, widened for few seeds, within 0 and 1.

    Args:
        ours: (n,) for every environment; a larger number is better.
        theirs: (m,) for the same environments in the same order.
        rng: draws the resamples.
        level: how often the interval shall hold the true value.
        replicates: resamples.
    """

    def probability(strata: Sequence[Values]) -> Values:
        if strata[0].ndim == 1:
            return _improvement(strata)
        pairs = max(len(mine[0]) * len(other[0]) for mine in strata for other in strata)
        parts = max(1, len(strata[0]) * pairs // PAIRS)  # a thousand seeds against a thousand do not fit at once
        return np.concatenate(
            [_improvement(part) for part in zip(*(np.array_split(s, parts) for s in strata), strict=True)]
        )

    low, high = bootstrap_interval([*ours, *theirs], probability, rng, level, replicates)
    return Interval(max(low, 0.0), min(high, 1.0)) if low == low else UNKNOWN


def welch_test(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Welch's test of equal means, for two groups that may spread differently (Welch 1947).

    Args:
        ours: (n,).
        theirs: (m,).
    Returns:
        the two-sided p-value; NaN where a group has fewer than two numbers.
    """
    groups = [np.asarray(group, dtype=float) for group in (ours, theirs)]
    if min(map(len, groups)) < 2:
        return np.nan
    difference = groups[0].mean() - groups[1].mean()
    variances = np.array([group.var(ddof=1) / len(group) for group in groups])
    if not variances.any():
        return 1.0 if difference == 0 else 0.0
    freedom = variances.sum() ** 2 / sum(v**2 / (len(g) - 1) for v, g in zip(variances, groups, strict=True))
    return float(2 * stdtr(freedom, -abs(difference) / np.sqrt(variances.sum())))


def permutation_test(ours: Strata, theirs: Strata, rng: np.random.Generator, permutations: int = PERMUTATIONS) -> float:
    """Test that it makes no difference in any environment which of two algorithms a run is of.

    Runs change sides at random within their environment; the statistic is the mean over environments of the
    difference of means. The data count as one permutation more, so that the p-value is never too small (Phipson
    and Smyth 2010). Three seeds against three in one environment cannot come below 0.1; in three, 0.00025 is possible.

    Args:
        ours: (n,) for every environment.
        theirs: (m,) for the same environments in the same order.
        rng: draws the permutations.
        permutations: how many.
    Returns:
        the two-sided p-value.
    """
    seen, moved = 0.0, np.zeros(permutations)
    for mine, other in zip(ours, theirs, strict=True):
        count = len(np.asarray(mine))
        both = np.concatenate([np.asarray(mine, dtype=float), np.asarray(other, dtype=float)])
        shuffled = rng.permuted(np.tile(both, (permutations, 1)), axis=1)
        seen += both[:count].mean() - both[count:].mean()
        moved += shuffled[:, :count].mean(axis=1) - shuffled[:, count:].mean(axis=1)
    as_far = np.abs(moved) >= abs(seen) * (1 - 1e-9) - 1e-12  # the same sum in another order is not less
    return float((as_far.sum() + 1) / (permutations + 1))


def holm(p_values: ArrayLike) -> Values:
    """P-values corrected for their number, so that any false finding among all has its probability (Holm 1979).

    Args:
        p_values: (m,); NaN for a comparison that could not be made, which does not count.
    Returns:
        (m,): each is to be compared with the level itself, for example 0.05.
    """
    given = np.asarray(p_values, dtype=float)
    corrected = np.full(given.shape, np.nan)
    made = np.flatnonzero(~np.isnan(given))
    order = made[np.argsort(given[made], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1.0)
    return corrected


def expected_best(values: ArrayLike, sizes: ArrayLike) -> Values:
    """Mean of the best of n settings, over all choices of n among the settings that were tried.

    This is what a search of n trials is worth (Dodge et al. 2019). They choose with replacement, which is too low;
    here it is without, which is right on average (Tang et al. 2020).

    Args:
        values: (..., N), of N settings; a larger number is better.
        sizes: (S,), every n from 1 to N.
    Returns:
        (..., S).
    """
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    return ordered @ _best_weights(ordered.shape[-1], np.asarray(sizes)).T


def _best_weights(count: int, sizes: NDArray[np.int_]) -> Values:
    """How often each of the ordered values is the best of n: choose(i - 1, n - 1) / choose(N, n) for the i-th.

    Args:
        count: N, of the values.
        sizes: (S,), every n.
    Returns:
        (S, N).
    """

    def log_choose(total: Values, size: Values) -> Values:
        return gammaln(total + 1) - gammaln(size + 1) - gammaln(total - size + 1)

    size, rank = np.asarray(sizes, dtype=float)[:, None], np.arange(1, count + 1, dtype=float)[None]
    possible = rank >= size  # at least n - 1 others are not better
    total = np.where(possible, rank - 1, size - 1)
    logs = log_choose(total, np.broadcast_to(size - 1, total.shape)) - log_choose(np.full_like(size, count), size)
    return np.where(possible, np.exp(logs), 0.0)


def expected_best_interval(
    values: ArrayLike,
    sizes: ArrayLike,
    rng: np.random.Generator,
    level: float = LEVEL,
    replicates: int = REPLICATES,
) -> tuple[Values, Values]:
    """Bootstrap interval of the expected best of n, for every n alone.

    Towards n = N the resamples know nothing better than the best setting that was tried, so the upper end is too
    low there. Trust it up to about half of N.

    Args:
        values: (N,), of N settings.
        sizes: (S,), every n from 1 to N.
        rng: draws the settings of the resamples.
        level: of the interval.
        replicates: resamples.
    Returns:
        (S,) lower and (S,) upper ends.
    """
    (drawn,) = resample([values], rng, replicates)
    low, high = np.quantile(expected_best(drawn, sizes), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
