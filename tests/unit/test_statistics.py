"""What a handful of seeds can tell: by hand, against SciPy, and by simulation (slow)."""

import itertools
import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from gems_ray.results.statistics import (
    _small_sample_factor,
    bootstrap_interval,
    expected_best,
    expected_best_interval,
    holm,
    improvement_interval,
    interquartile_mean,
    mean_of_strata,
    percentile_interval,
    permutation_test,
    pooled_interquartile_mean,
    probability_of_improvement,
    resample,
    welch_test,
)

numbers = st.floats(-1e6, 1e6)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_interquartile_mean_by_hand():
    assert interquartile_mean([1, 2, 6]) == 3  # nothing to leave out of three
    assert interquartile_mean([100, 1, 2, 4]) == 3
    assert interquartile_mean([5, 1, 2, 3, 4, 99, -99, 6]) == 3.5
    assert interquartile_mean([[0, 0, 4, 9], [1, 1, 1, 1]]).tolist() == [2, 1]
    assert pooled_interquartile_mean([np.array([1.0, 2.0]), np.array([4.0, 100.0])]) == 3
    assert mean_of_strata([np.array([1.0, 3.0]), np.array([10.0])]) == 6


@given(st.lists(numbers, min_size=1, max_size=30))
def test_interquartile_mean_is_what_rliable_computes(values):
    """`scipy.stats.trim_mean(scores, proportiontocut=0.25)`, on the scores of all runs and tasks."""
    assert interquartile_mean(values) == pytest.approx(scipy.stats.trim_mean(values, 0.25), rel=1e-9, abs=1e-6)


def test_resamples_stay_within_their_stratum(rng):
    first, second = resample([[1, 2, 3], [10, 20]], rng, 500)
    assert (first.shape, second.shape) == ((500, 3), (500, 2))
    assert set(first.flat) == {1, 2, 3}
    assert set(second.flat) == {10, 20}


def test_percentiles_of_resamples_are_those_of_all_possible_ones(rng):
    """The published interval: with two strata of two runs there are 16 resamples, all equally likely."""
    strata = [[0.0, 10.0], [100.0, 140.0]]
    every = [
        np.mean([*a, *b])
        for a in itertools.product(strata[0], repeat=2)
        for b in itertools.product(strata[1], repeat=2)
    ]
    found = percentile_interval(mean_of_strata(resample(strata, rng, 20_000)), 0.8)
    assert found == percentile_interval(every, 0.8) == (52.5, 72.5)


def test_the_interval_is_the_published_one_with_many_seeds_and_wider_with_few(rng):
    many = rng.normal(size=2_000)
    draws = pooled_interquartile_mean(resample([many], np.random.default_rng(1)))
    published = percentile_interval(draws)
    found = bootstrap_interval([many], pooled_interquartile_mean, np.random.default_rng(1))
    assert found == pytest.approx(published, abs=0.002 * (published.high - published.low) + 1e-4)
    few = [1.0, 2.0, 3.0]
    published = percentile_interval(mean_of_strata(resample([few], np.random.default_rng(1))))
    found = bootstrap_interval([few], mean_of_strata, np.random.default_rng(1))
    factor = scipy.stats.t.ppf(0.975, 2) / scipy.stats.norm.ppf(0.975) * math.sqrt(3 / 2)
    assert found == pytest.approx((2 - factor * (2 - published.low), 2 + factor * (published.high - 2)))
    assert 2.68 < factor < 2.70


def test_the_interval_depends_on_the_generator_alone():
    strata = [np.sqrt(np.arange(12)), np.arange(20) ** 1.5]
    one, two, other = (
        bootstrap_interval(strata, pooled_interquartile_mean, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert one == two != other


def test_one_seed_has_no_interval(rng):
    assert np.isnan(bootstrap_interval([[1.0]], mean_of_strata, rng)).all()
    assert np.isnan(bootstrap_interval([[1.0, 2.0], [3.0]], mean_of_strata, rng)).all()
    assert np.isnan(bootstrap_interval([], mean_of_strata, rng)).all()
    assert np.isnan(improvement_interval([[1.0]], [[2.0, 3.0]], rng)).all()
    assert bootstrap_interval([[7.0, 7.0]], mean_of_strata, rng) == (7, 7)


def test_probability_of_improvement_by_hand():
    assert probability_of_improvement([[3, 4]], [[1, 2]]) == 1
    assert probability_of_improvement([[1, 4]], [[2, 3]]) == 0.5
    assert probability_of_improvement([[1, 2]], [[1, 2]]) == 0.5  # pairs: equal, below, above, equal
    assert probability_of_improvement([[2, 2, 5]], [[2, 1]]) == pytest.approx((1.5 + 1.5 + 2) / 6)
    assert probability_of_improvement([[3, 4], [1, 1]], [[1, 2], [2, 2, 2]]) == 0.5  # 1 in one environment, 0 in one


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_probability_of_improvement_is_what_rliable_computes(ours, theirs):
    """The Mann-Whitney statistic by the number of pairs."""
    published = scipy.stats.mannwhitneyu(ours, theirs, method="asymptotic").statistic / (len(ours) * len(theirs))
    assert probability_of_improvement([ours], [theirs]) == pytest.approx(published)
    assert probability_of_improvement([theirs], [ours]) == pytest.approx(1 - published)


def test_the_interval_of_an_improvement_lies_within_0_and_1(rng):
    low, high = improvement_interval([[1.0, 5.0, 3.0]], [[2.0, 4.0, 3.5]], rng)
    assert 0 <= low < 0.5 < high <= 1
    assert improvement_interval([[5.0, 6.0]], [[1.0, 2.0]], rng) == (1, 1)


@given(st.lists(numbers, min_size=2, max_size=9), st.lists(numbers, min_size=2, max_size=9))
def test_welch_is_what_scipy_computes(ours, theirs):
    if min(np.var(ours), np.var(theirs)) > 1e-3:
        assert welch_test(ours, theirs) == pytest.approx(
            scipy.stats.ttest_ind(ours, theirs, equal_var=False).pvalue, abs=1e-9
        )


def test_welch_without_any_spread_and_without_seeds():
    assert welch_test([1, 1], [1, 1]) == 1
    assert welch_test([1, 1], [2, 2]) == 0
    assert math.isnan(welch_test([1], [2, 3]))


def test_permutations_by_hand(rng):
    """Of the 20 ways to split six runs, two are as far apart as 1, 2, 3 against 4, 5, 6."""
    assert permutation_test([[1, 2, 3]], [[4, 5, 6]], rng) == pytest.approx(0.1, abs=0.01)
    assert permutation_test([[1.0, 2.0]], [[2.0, 1.0]], rng) == 1
    two = permutation_test([[1, 2, 3], [10, 20, 30]], [[4, 5, 6], [40, 50, 60]], rng)
    assert two == pytest.approx(2 / 400, abs=0.003)
    assert permutation_test([range(20)], [range(100, 120)], rng, 99) == 0.01  # never 0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1, 1]
    assert holm([math.nan, 0.02]).tolist()[1] == 0.02  # what was not compared does not count
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    corrected = holm(p_values)
    assert all(corrected >= np.array(p_values) - 1e-12)
    assert all(corrected <= np.minimum(1, len(p_values) * np.array(p_values)) + 1e-12)
    assert (np.diff(corrected[np.argsort(p_values, kind="stable")]) >= 0).all()


@given(st.lists(numbers, min_size=1, max_size=7))
def test_the_expected_best_is_the_mean_over_all_choices(values):
    sizes = range(1, len(values) + 1)
    by_hand = [np.mean([max(chosen) for chosen in itertools.combinations(values, n)]) for n in sizes]
    assert expected_best(values, sizes) == pytest.approx(by_hand, rel=1e-9, abs=1e-6)


def test_the_expected_best_of_many_settings():
    found = expected_best(np.arange(3_000.0), [1, 2, 3_000])
    assert found == pytest.approx([1499.5, 1999 + 2 / 3, 2999], rel=1e-9)


def test_the_interval_of_the_expected_best(rng):
    values = rng.normal(size=40)
    low, high = expected_best_interval(values, [1, 2, 10, 20], rng)
    middle = expected_best(values, [1, 2, 10, 20])
    assert (low < middle).all() and (middle <= high + 1e-9).all()
    again, _ = expected_best_interval([3.0], [1], rng)
    assert again == 3


NORMAL = {"normal": lambda rng, size, stratum: rng.normal(size=size)}
DRAWS = NORMAL | {
    "spreads that differ": lambda rng, size, stratum: rng.normal(size=size) * (1 + 3 * stratum),
    "heavy tails": lambda rng, size, stratum: rng.standard_t(3, size=size),
}


@pytest.mark.slow
@pytest.mark.parametrize("draw", list(DRAWS))
@pytest.mark.parametrize(("environments", "seeds"), [(1, 3), (1, 10), (3, 3), (3, 5), (3, 10)])
def test_the_interval_covers_the_truth_as_often_as_it_says(draw, environments, seeds, rng):
    """The published percentiles do not with few seeds: 72% with three seeds in one environment."""
    trials, covered, published = 2_000, 0, 0
    for _ in range(trials):
        strata = [DRAWS[draw](rng, seeds, stratum) for stratum in range(environments)]
        low, high = bootstrap_interval(strata, pooled_interquartile_mean, rng, replicates=500, pooled=True)
        covered += low <= 0 <= high
        low, high = percentile_interval(pooled_interquartile_mean(resample(strata, rng, 500)))
        published += low <= 0 <= high
    share = covered / trials
    print(f"{draw}, {environments} x {seeds}: {share:.1%} covered; published percentiles {published / trials:.1%}")  # noqa: T201
    error = 3 * math.sqrt(0.95 * 0.05 / trials)
    assert share > 0.95 - error - (0.01 if draw == "spreads that differ" else 0)
    assert share < 0.98 + error


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(3, 3), (5, 10), (2, 20), (3, 30)])
def test_the_interval_of_a_difference_covers_the_truth_with_unequal_numbers_of_seeds(seeds, rng):
    trials, covered = 2_000, 0
    for _ in range(trials):
        strata = [rng.normal(size=size) for size in seeds]
        low, high = bootstrap_interval(strata, lambda data: data[1].mean(-1) - data[0].mean(-1), rng, replicates=500)
        covered += low <= 0 <= high
    print(f"{seeds}: {covered / trials:.1%} covered")  # noqa: T201
    assert covered / trials > 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


def test_few_seeds_of_one_stratum_are_not_made_up_for_by_many_of_another():
    """By hand: with (2, 20) seeds the freedom is 0.55^2 / (0.5^2 + 0.05^2 / 19) = 1.21."""
    assert _small_sample_factor([2, 20], 0.95, pooled=False) > scipy.special.stdtrit(1.22, 0.975) / 1.96
    for pooled in (False, True):
        equal = _small_sample_factor([3, 3], 0.95, pooled)
        assert equal == pytest.approx(scipy.special.stdtrit(4, 0.975) / 1.959964 * math.sqrt(3 / 2))


@pytest.mark.slow
@pytest.mark.parametrize("test", ["welch", "permutation"])
def test_a_test_keeps_its_level(test, rng):
    trials, found = 2_000, 0
    for _ in range(trials):
        ours, theirs = ([rng.normal(size=3) * (1 + stratum) for stratum in range(3)] for _ in range(2))
        p = welch_test(ours[0], theirs[0]) if test == "welch" else permutation_test(ours, theirs, rng, 199)
        found += p <= 0.05
    print(f"{test}: {found / trials:.1%} of equal pairs found different at 5%")  # noqa: T201
    assert found / trials < 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
