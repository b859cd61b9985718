"""Factors of a tall matrix whose rows count differently: a token embedding, or a head that is tied to it.

min Σ_t w_t ‖(e_t - b_t A) L‖² over A (r, d) and the rows b_t has a closed form: with V_r the leading eigenvectors of
Lᵀ Eᵀ diag(w) E L (d, d), A = V_rᵀ L⁻¹ and B = E L V_r. No row is divided by its weight, so that a token which the data
do not hold is projected as the others are. The loss is the sum of the dropped eigenvalues. It costs 2·V·d² operations
and needs no V x V matrix.

Equal weights and L = I give the truncated SVD; equal weights alone give `whitening.whiten`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..fitted import Factors
from .whitening import Root

ROWS = 8192
"""That are in float64 at a time."""


def factor_rows(
    weight: Tensor, row_weights: Tensor | None = None, inputs: Root | None = None, rank: int | None = None
) -> Factors:
    """Decompose E so that each truncation minimises Σ_t w_t ‖(e_t - b_t A) L‖².

    Args:
        weight: E (V, d); of V < d there are V components.
        row_weights: w (V,), not negative; None counts all rows alike.
        inputs: L Lᵀ are the second moments of what the matrix is multiplied with (`whitening.root`); None is the
            identity.
        rank: how many parts; None for all. A vocabulary is large: B takes 4·V bytes a part.

    Returns:
        Factors in float32 with √s in both. The squares of the spectrum are the losses of dropping a component.

    Raises:
        ValueError: the matrix or the weights hold a NaN or an infinity.
    """
    lower = None if inputs is None else inputs.lower.to(weight.device)
    side = weight.shape[1]
    gram = torch.zeros(side, side, dtype=torch.float64, device=weight.device)
    for start in range(0, len(weight), ROWS):
        rows = _seen(weight, start, lower)
        weighted = rows if row_weights is None else rows * row_weights[start : start + ROWS, None].to(rows)
        gram += weighted.mT @ rows
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("an embedding or the weights of its rows hold NaN or infinite entries")
    values, vectors = torch.linalg.eigh(gram)
    rank = min(rank or side, side, len(weight))  # a vocabulary smaller than the width has no more components
    s, vectors = values.flip(0).clamp(min=0).sqrt()[:rank], vectors.flip(1)[:, :rank]
    # √s in both factors conditions the training that follows, s as with weights of mean 1; a component without weight
    # stays as it is.
    mean = float(row_weights.double().mean()) if row_weights is not None else 1.0
    root = torch.where(s > s[0] * 1e-7, s / (mean or 1.0) ** 0.5, torch.ones_like(s)).sqrt()
    left = torch.empty(len(weight), len(s), dtype=torch.float32, device=weight.device)
    for start in range(0, len(weight), ROWS):
        left[start : start + ROWS] = (_seen(weight, start, lower) @ vectors / root).float()
    right = vectors.mT if lower is None else torch.linalg.solve_triangular(lower, vectors.mT, upper=False, left=False)
    jitter = () if inputs is None else (inputs.jitter,)
    return Factors(left, (root[:, None] * right).float(), s.float(), jitter=jitter)


def _seen(weight: Tensor, start: int, lower: Tensor | None) -> Tensor:
    """Return some rows of E L in float64."""
    rows = weight[start : start + ROWS].double()
    return rows if lower is None else rows @ lower
