"""Paired tests: against scipy where it has them, and by what they have to be."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lowrank_bench.records.paired import enough_flips, holm, mcnemar, sign_flips

P_VALUES = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_binomial_test(a, b):
    expected = stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=2, max_size=9), st.integers(0, 5))
def test_sign_flips_come_near_the_exact_permutation_test(differences, seed):
    signs = np.array(list(itertools.product((-1, 1), repeat=len(differences))))
    exact = (np.abs(signs @ differences) >= abs(sum(differences)) - 1e-9).mean()
    (p_value,) = sign_flips(np.array([differences], dtype=float).T, 20_000, seed)
    assert abs(p_value - exact) < 5 * np.sqrt(0.25 / 20_000) + 1e-4


def test_sign_flips_agree_with_scipy():
    d = np.random.default_rng(1).normal(0.15, 1, (200, 3))
    ours = sign_flips(d, 40_000)
    for column, p in zip(d.T, ours, strict=True):
        scipy = stats.permutation_test((column, np.zeros(200)), lambda a, b: (a - b).mean(), permutation_type="samples",
                                       n_resamples=20_000, vectorized=False, rng=2).pvalue  # fmt: skip
        assert p == pytest.approx(scipy, abs=0.02)


def test_a_comparison_does_not_depend_on_its_neighbours():
    d = np.random.default_rng(3).normal(0, 1, (50, 4))
    alone = [sign_flips(d[:, [i]])[0] for i in range(4)]
    assert list(sign_flips(d)) == alone


def test_problems_that_are_equal_for_both_change_nothing_but_chance():
    d = np.random.default_rng(4).normal(0.2, 1, (80, 1))
    padded = np.vstack([d, np.zeros((40, 1))])
    assert sign_flips(d, 40_000)[0] == pytest.approx(sign_flips(padded, 40_000)[0], abs=0.01)


def test_equals_are_never_different():
    assert sign_flips(np.zeros((10, 2))).tolist() == [1.0, 1.0]


@settings(deadline=None)
@given(P_VALUES)
def test_holm_lies_between_no_correction_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert p <= q <= min(1, len(p_values) * p) or q == pytest.approx(p)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    assert [adjusted[i] for i in order] == sorted(adjusted)


def test_holm_on_a_worked_example():
    # Four p-values at 0.05 (R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")).
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_clear_difference_survives_the_correction_for_many_methods():
    pairs = 60 * 59 // 2
    clear = np.full((300, 1), 1.0)
    assert sign_flips(clear, enough_flips(pairs))[0] * pairs < 0.05
