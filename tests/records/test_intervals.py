"""Intervals against scipy, by their properties, and by the coverage they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lowrank_bench.records.intervals import across_seeds, mean_interval, perplexity_interval, t_quantile, wilson

counts = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(count, confidence):
    ours = wilson(*count, confidence)
    theirs = stats.binomtest(*count).proportion_ci(confidence, method="wilson")
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@given(counts)
def test_wilson_holds_the_share_and_shrinks_with_more_problems(count):
    successes, n = count
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    more = wilson(4 * successes, 4 * n)
    assert more.high - more.low < high - low


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0)])
def test_wilson_refuses_what_is_no_proportion(successes, n, confidence):
    with pytest.raises(ValueError, match=r"proportion|between 0 and 1"):
        wilson(successes, n, confidence)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 30, 165, 999, 1000, 1001, 1318, 100_000])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_t_quantile_agrees_with_scipy(degrees, confidence):
    assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf((1 + confidence) / 2, degrees), rel=1e-9)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_mean_interval_agrees_with_scipy(values):
    low, high = mean_interval(values)
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    assert (low, high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), rel=1e-7, abs=1e-7)


def test_one_value_bounds_nothing():
    assert across_seeds([0.4], lower=0, upper=1) == (0, 1)
    assert perplexity_interval([100.0], [50]) == (0, math.inf)


def test_ends_stay_within_the_metric():
    assert across_seeds([0.01, 0.2], lower=0, upper=1).low == 0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 2048)), min_size=2, max_size=50))
def test_perplexity_interval_holds_the_perplexity(windows):
    sums, tokens = [rate * count for rate, count in windows], [count for _, count in windows]
    low, high = perplexity_interval(sums, tokens)
    perplexity = math.exp(sum(sums) / sum(tokens))
    assert low <= perplexity * (1 + 1e-9)
    assert high >= perplexity * (1 - 1e-9)


def test_perplexity_interval_of_equal_windows_is_that_of_their_means():
    means = [2.1, 2.4, 1.9, 2.2, 2.6]
    low, high = perplexity_interval([100 * m for m in means], [100] * 5)
    assert (math.log(low), math.log(high)) == pytest.approx(stats.t.interval(0.95, 4, np.mean(means), stats.sem(means)))


def test_perplexity_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits, rounds = 0, 2000
    for _ in range(rounds):
        tokens = random.integers(20, 400, 40)
        sums = tokens * random.normal(2.0, 0.5, 40)
        low, high = perplexity_interval(sums.tolist(), tokens.tolist())
        hits += low <= math.exp(2.0) <= high
    # Three standard errors of the simulation, and the known shortfall of a linearised estimator at 40 clusters.
    assert 0.92 < hits / rounds < 0.965


def test_an_unbounded_end_is_infinite_rather_than_an_error():
    assert perplexity_interval([0.0, 9e5], [1, 1000]).high == math.inf


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 1.0]])
def test_values_have_to_be_finite(values):
    with pytest.raises(ValueError, match="finite"):
        mean_interval(values)
