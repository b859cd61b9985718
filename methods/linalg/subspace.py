"""Leading singular triplets by randomised subspace iteration, accelerated by Chebyshev polynomials and certified.

A Gaussian start and two steps of the power method (Halko, Martinsson and Tropp 2011, algorithm 4.4) give Ritz values
that are good enough to place a Chebyshev polynomial which is small on the unwanted end of the spectrum (Zhou, Saad,
Tiago and Chelikowsky 2006). It spans the same Krylov space as block Krylov methods (Musco and Musco 2015) with a block
that stays narrow: all work is in products with one matrix, which a GPU likes.
"""

import math

import torch
from torch import Tensor

from .certificate import best_bound, certified
from .exact import completed, gram, scaled

ROUNDS = 5
"""Rayleigh-Ritz steps before the exact decomposition is taken."""
_DEGREE = 12
_GROWTH = 1e12
"""How much more the polynomial may amplify the largest eigenvalue than the least wanted one, in float64."""
_GOAL = 0.002
"""Which part of the allowed excess the next polynomial aims at."""
_NOTHING = 1e-12
_LOST = 1e-9
"""Shares of the energy: below one the residual is nothing in float32, below the other it is lost in rounding."""


def leading(wide: Tensor, rank: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return U (m, r), s (r,), Vᵀ (r, n) with a residual within ``tolerance`` of the optimum, or None without a proof.

    A residual below 1e-6 ‖W‖_F is taken as it is. One below 3e-5 ‖W‖_F is lost in the rounding of the Gram matrix and
    not certified.

    Args:
        wide: W (m, n), float32 or float64, finite.
        rank: r, at most min(m, n); pays where it is far below.
        tolerance: see `decompose.svd`.
    """
    across, largest = scaled(wide)
    square = gram(across)
    energy = float(square.diagonal().sum())
    width = rank + max(16, rank // 4)
    if energy == 0 or width > len(square):
        return None
    generator = torch.Generator(square.device).manual_seed(0)
    start = torch.randn(len(square), width, generator=generator, dtype=square.dtype, device=square.device)
    q = _orthonormal(square @ _orthonormal(square @ start))
    for _ in range(ROUNDS):
        image = square @ q
        values, rotation = torch.linalg.eigh(q.mT @ image)
        values, rotation = values.flip(0), rotation.flip(1)
        q, image = q @ rotation, image @ rotation
        left = energy - float(values[:rank].sum())
        if left <= _NOTHING * energy and wide.dtype == torch.float32:
            return completed(wide, across, largest, q[:, :rank])
        if left <= _LOST * energy:
            return None
        residual = image - q * values
        allowed = (1 - (1 + tolerance) ** -2) * left
        bound = best_bound(values, residual.norm(dim=0), rank, allowed)
        if bound.excess < 1 and certified(square, q, values, residual, bound):
            return completed(wide, across, largest, q[:, :rank])
        q = _filtered(square, q, values, residual.norm(dim=0), rank, allowed, bound.excess)
    return None


def _filtered(
    square: Tensor, q: Tensor, values: Tensor, residuals: Tensor, rank: int, allowed: float, excess: float
) -> Tensor:
    """Return an orthonormal basis of p(A) Q with p the Chebyshev polynomial on [0, θ_l].

    What has converged above twice the least wanted value is cut down to that, so that few large values do not limit the
    degree: of A - Q D Qᵀ the vectors are those of A where the residuals vanish.
    """
    least, edge = float(values[rank - 1]), float(values[-1])
    done = (residuals.square() * values <= 0.01 * allowed / rank * least**2) & (values > 2 * least)
    if bool(done.any()):
        square = square - (q * ((values - 2 * least) * done)) @ q.mT
    top = float(torch.where(done, 2 * least, values).max())
    edge = max(edge, 1e-8 * top)
    degree = int(math.log(2 * _GROWTH) / math.acosh(max(2 * top / edge - 1, 1.0001)))
    gain = math.acosh(max(2 * least / edge - 1, 1.0001))
    needed = math.ceil(math.log(min(max(excess, 1.0), 1e9) / _GOAL) / (2 * gain)) + 1
    degree = max(2, min(degree, needed, _DEGREE))
    before, now = q, square @ q * (2 / edge) - q
    for _ in range(degree - 1):
        before, now = now, 2 * (square @ now * (2 / edge) - now) - before
    return _orthonormal(now)


def _orthonormal(columns: Tensor) -> Tensor:
    """Return an orthonormal basis; leading columns first, scaled so that small ones keep their digits."""
    scale = columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
    return torch.linalg.qr(columns / scale).Q
