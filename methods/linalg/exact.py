"""Full decompositions: LAPACK's, and through the eigenvectors of the Gram matrix."""

from contextlib import suppress

import torch
from torch import Tensor

from .choice import EIGEN_FROM

_LEAST = 1e-6
"""How far from orthonormal and from the matrix a result in float32 may be, relative."""
_BLOCK = 512
_SPREAD = 1e9
"""Largest squared singular value over the least up to which `left_vectors` goes through the Gram matrix."""


def lapack(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `torch.linalg.svd`'s thin result for (…, m, n), float32 or float64."""
    u, s, vt = torch.linalg.svd(wide, full_matrices=False)
    return u, s, vt


def scaled(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices (…, k, l) in float64, transposed if need be so that k ≤ l, divided by their largest entry.

    Returns:
        The matrices, and what they were divided by, (…, 1); without it squares would leave the range of floats.
    """
    across = wide if wide.shape[-2] <= wide.shape[-1] else wide.mT
    largest = across.abs().amax((-2, -1)).double()
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    return across.to(torch.float64, copy=True).div_(largest[..., None, None]), largest[..., None]


def gram(across: Tensor) -> Tensor:
    """Return X Xᵀ (…, k, k) of X (…, k, l), in blocks of rows so that nearly half of the symmetric product is saved."""
    side = across.shape[-2]
    if side <= _BLOCK:
        return across @ across.mT
    gram = across.new_empty(*across.shape[:-1], side)
    for begin in range(0, side, _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        gram[..., rows, begin:] = across[..., rows, :] @ across[..., begin:, :].mT
        gram[..., begin:, rows] = gram[..., rows, begin:].mT
    return gram


def left_vectors(matrix: Tensor, least: int = EIGEN_FROM) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors U (m, k) and singular values s (k,) of a float64 matrix, k = min(m, n).

    They come from the eigenvectors of the Gram matrix of the shorter side where its eigenvalues, s², do not spread over
    more than nine orders of magnitude. Those are computed to a few ε s_1², ε of float64 (Weyl), so each s_i² is right
    to about 1e-6 of itself, U is orthonormal to 1e-6, and ‖M - U_r U_rᵀ M‖² is within 1e-6 of the least possible,
    relative, for every r. Where they spread more, M is singular, or k < ``least``, it is LAPACK's SVD.

    Args:
        matrix: M (m, n), float64, finite.
        least: min(m, n) from which the eigen form is tried.
    """
    rows, columns = matrix.shape
    if min(rows, columns) >= least:
        with suppress(torch.linalg.LinAlgError):
            values, vectors = torch.linalg.eigh(gram(matrix if rows <= columns else matrix.mT))
            if 0 < float(values[-1]) <= _SPREAD * float(values[0]):
                if rows <= columns:
                    return vectors.flip(1), values.flip(0).sqrt()
                # The eigenvectors are V here: U s = M V. No norm is 0, as the least eigenvalue is above 0.
                image = matrix @ vectors.flip(1)
                s = image.norm(dim=0)
                return image.div_(s), s
    u, s, _ = lapack(matrix)
    return u, s


def completed(wide: Tensor, across: Tensor, largest: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the triplets of U Uᵀ X, for orthonormal U (…, k, r) for which Uᵀ X has nearly orthogonal rows.

    Where rows of Uᵀ X are too short to be orthogonal after division by their norms, they are made orthonormal by
    Householder reflections, and what that leaves out is checked to be rounding.

    Args:
        wide: the matrix (…, m, n) as it came.
        across, largest: X (…, k, l) and its scale, from `scaled`.
        first: U.

    Returns:
        Triplets of the matrix in its dtype, descending; None where they would be further than 1e-6 from orthonormal or
        from U Uᵀ X, relative to X.
    """
    image = across.mT @ first
    s = image.norm(dim=-2)
    second = image / s.clamp_min(torch.finfo(s.dtype).tiny)[..., None, :]
    product = second.mT @ second
    product.diagonal(dim1=-2, dim2=-1).sub_(1)
    if not bool((product.abs().amax((-2, -1)) <= _LEAST / 2).all()):
        second, upper = torch.linalg.qr(image)
        diagonal = upper.diagonal(dim1=-2, dim2=-1).clone()
        upper.diagonal(dim1=-2, dim2=-1).zero_()
        if not bool((upper.norm(dim=(-2, -1)) <= _LEAST * across.norm(dim=(-2, -1))).all()):
            return None
        s, second = diagonal.abs(), second * torch.where(diagonal < 0, -1.0, 1.0)[..., None, :]
    s, order = s.sort(dim=-1, descending=True)
    first = first.gather(-1, order[..., None, :].expand_as(first))
    second = second.gather(-1, order[..., None, :].expand_as(second))
    u, v = (first, second) if wide.shape[-2] <= wide.shape[-1] else (second, first)
    return u.to(wide.dtype), (s * largest).to(wide.dtype), v.mT.contiguous().to(wide.dtype)


def eigen(wide: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return the thin SVD in float32 through the float64 eigenvectors of the Gram matrix of the shorter side.

    A Gram matrix squares singular values: relative errors of σ_i are about 1e-16 (σ_1/σ_i)², harmless in float32 down
    to σ_i = 1e-4 σ_1. The product U S Vᵀ is right whatever σ_i is, because U is orthonormal and S Vᵀ is Uᵀ W.

    Args:
        wide: (…, m, n), float32.

    Returns:
        U (…, m, k), s (…, k) descending, Vᵀ (…, k, n); None where `completed` gives none.
    """
    across, largest = scaled(wide)
    _, vectors = torch.linalg.eigh(gram(across))
    return completed(wide, across, largest, vectors.flip(-1))
