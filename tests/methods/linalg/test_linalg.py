"""Decompositions against torch's own, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.methods.linalg import exact, left_vectors, merge, svd


@settings(deadline=None, max_examples=60)
@given(m=st.integers(1, 14), n=st.integers(1, 14), k=st.integers(1, 20), data=st.data(), seed=st.integers(0, 99))
def test_merge_is_the_truncated_svd_of_the_product(m: int, n: int, k: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((m, k), (k, n)))
    u, s, vt = merge(left, right, rank)
    assert (u.shape, s.shape, vt.shape) == ((m, rank), (rank,), (rank, n))
    full = torch.linalg.svdvals(left @ right)
    torch.testing.assert_close(s, full[:rank] * (torch.arange(rank) < k), rtol=1e-9, atol=1e-9)
    error = (left @ right - u * s @ vt).square().sum()
    torch.testing.assert_close(error, full[rank:].square().sum(), rtol=1e-8, atol=1e-16 * float(full[0]) ** 2 * m * n)


def test_merge_of_nothing_and_of_zeros_is_finite() -> None:
    for left, right in ((torch.zeros(5, 2), torch.ones(2, 4)), (torch.zeros(5, 0), torch.zeros(0, 4))):
        u, s, vt = merge(left, right, 3)
        assert all(torch.isfinite(part).all() for part in (u, s, vt))
        assert not (u * s @ vt).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_svd_is_thin_and_never_narrower_than_float32(dtype: torch.dtype) -> None:
    weight = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    u, s, vt = svd(weight)
    assert (u.shape, s.shape, vt.shape) == ((9, 5), (5,), (5, 5))
    assert s.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(u * s @ vt, weight.to(s.dtype), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_svd_refuses_what_is_not_finite(value: float) -> None:
    weight = torch.ones(3, 3)
    weight[1, 2] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        svd(weight)


def conditioned(m: int, n: int, condition: float) -> torch.Tensor:
    """A matrix whose singular values fall evenly, in orders of magnitude, from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(m)
    side = min(m, n)
    u, _ = torch.linalg.qr(torch.randn(m, side, generator=generator, dtype=torch.float64))
    v, _ = torch.linalg.qr(torch.randn(n, side, generator=generator, dtype=torch.float64))
    spectrum = torch.logspace(0, -math.log10(condition), side, dtype=torch.float64)
    return u * spectrum @ v.T


@pytest.mark.parametrize(("m", "n"), [(96, 64), (64, 96), (80, 80)])
@pytest.mark.parametrize("condition", [10, 1e3, 3e4])
def test_left_vectors_lose_next_to_nothing_through_the_gram_matrix(
    m: int, n: int, condition: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the stated 1e-6 of LAPACK's float64 SVD, for every rank, up to a spread of s² of nine orders."""
    matrix = conditioned(m, n, condition)
    best = torch.linalg.svdvals(matrix)
    monkeypatch.setattr(exact, "lapack", lambda _: pytest.fail("fell back"))
    u, s = left_vectors(matrix)
    assert float((u.T @ u - torch.eye(len(s))).abs().max()) < 1e-6
    torch.testing.assert_close(s.square(), best.square(), rtol=1e-6, atol=0)
    for rank in range(1, len(s)):
        projected = u[:, :rank] @ (u[:, :rank].T @ matrix)
        least = float(best[rank:].square().sum())
        assert abs(float((matrix - projected).square().sum()) / least - 1) < 1e-6


@pytest.mark.parametrize("matrix", [conditioned(96, 64, 1e10), conditioned(64, 96, 1e5), torch.zeros(70, 64).double()])
def test_left_vectors_fall_back_to_lapack(matrix: torch.Tensor) -> None:
    """Where a Gram matrix would lose digits, and where the matrix is singular."""
    u, s, _ = torch.linalg.svd(matrix, full_matrices=False)
    result = left_vectors(matrix)
    assert torch.equal(result[0], u)
    assert torch.equal(result[1], s)
