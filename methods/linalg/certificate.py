"""A proof, per matrix, that a subspace holds nearly as much of the matrix as the best one of its rank."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = 0.05
"""Share of what is allowed that covers rounding."""
_CAUTION = (8.0, 4.0, 2.0)
"""By how many residuals the unseen spectrum may reach above the next Ritz value."""
_SHIFTS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005, 0.001, 1e-4)


@dataclass(frozen=True)
class Bound:
    """An upper bound on the energy of the r leading triplets, true if a certain matrix is positive definite.

    Attributes:
        excess: the bound minus the energy found, in units of what is allowed; below 1 it suffices.
        vectors: p, how many Ritz vectors it uses.
        level: μ. shift: ξ. slack: ε.
    """

    excess: float
    vectors: int
    level: float
    shift: float
    slack: float


def best_bound(values: Tensor, residuals: Tensor, rank: int, allowed: float) -> Bound:
    """Return the bound with the least excess over p and ξ, see `certified`; the most cautious one that suffices.

    Args:
        values: θ (l,), Ritz values, descending.
        residuals: (l,) norms of A q_i - θ_i q_i.
        rank: r < l.
        allowed: how much energy may be missing.
    """
    values, residuals = values.cpu(), residuals.cpu()
    width, slack = len(values), _SLACK * allowed / rank
    counts = torch.arange(rank, width, max(1, (width - rank) // 12))
    shares = torch.tensor(_SHIFTS, dtype=values.dtype)
    missed = residuals.square().cumsum(0)[counts - 1, None]
    best = Bound(math.inf, rank, 0.0, 1.0, slack)
    for caution in _CAUTION:
        # A guess at the largest eigenvalue outside of p vectors; if it is too low, the factorisation fails.
        outside = (values + caution * residuals)[counts, None]
        shifts = (outside * shares).clamp_min(1e-300)
        levels = outside + shifts
        raised = (levels[..., None] - values[:rank]).clamp_min(0).sum(-1)
        excess = (raised + missed / shifts + rank * slack) / allowed
        place = divmod(int(excess.argmin()), len(shares))
        best = Bound(float(excess[place]), int(counts[place[0]]), float(levels[place]), float(shifts[place]), slack)
        if best.excess < 1:
            break
    return best


def certified(gram: Tensor, vectors: Tensor, values: Tensor, residual: Tensor, bound: Bound) -> bool:
    """Whether the bound holds.

    Let A = W Wᵀ, Q (k, p) orthonormal Ritz vectors, Qᵀ A Q = Θ, and R = A Q - Q Θ. Take
    M = μ (I - Q Qᵀ) + Q (Θ + RᵀR/ξ + ε I) Qᵀ. If M - A is positive definite, each eigenvalue of A is at most that of
    M (Weyl), and by Ky Fan's inequality the r largest of A sum up to at most
    Σ_{i≤r} max(θ_i, μ) + tr(RᵀR)/ξ + r ε. So the best rank-r approximation can hold only that much more energy than
    the r Ritz vectors do, Σ_{i≤r} θ_i. M - A is positive definite, by its Schur complement, when μ - ξ bounds what
    A has outside of Q; here it is simply factorised: a Cholesky factorisation that ends is the proof (Higham 2002,
    section 10.1), up to rounding, which ε must exceed.

    Args:
        gram: A (k, k), float64.
        vectors: (k, l), the first p are used. values: (l,). residual: (k, l), the columns A q_i - θ_i q_i.
        bound: what is to be shown.
    """
    # Rounding of the products and of the factorisation, at its usual √n growth (Higham and Mary 2019).
    if bound.slack < 4 * torch.finfo(gram.dtype).eps * math.sqrt(len(gram)) * float(gram.diagonal().sum()):
        return False
    q, r = vectors[:, : bound.vectors], residual[:, : bound.vectors]
    core = r.mT @ r / bound.shift
    core.diagonal().add_(values[: bound.vectors] + (bound.slack - bound.level))
    difference = (q @ core) @ q.mT - gram
    difference.diagonal().add_(bound.level)
    return int(torch.linalg.cholesky_ex(difference).info) == 0
