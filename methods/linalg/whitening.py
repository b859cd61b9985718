"""The one core of all methods that weight a matrix's error by second moments of its input, or of its output gradient.

min ‖(W - BA) X‖_F over rank-r B A has one solution, whichever way it is computed: SVD-LLM (Cholesky factor of the Gram
matrix), SVD-LLM V2 (its eigen form), DRONE (SVD of X) and Swift-SVD (principal components of the outputs) all give the
same product, U_r U_rᵀ W with U the left singular vectors of W S and S Sᵀ = G the Gram matrix. Here all is float64 and S
the Cholesky factor; the cheaper side is taken: the left singular vectors of W S, through the eigenvectors of its
smaller Gram matrix where that loses nothing (`linalg.left_vectors`), or the m x m eigenproblem of W G Wᵀ.

A singular Gram matrix has no Cholesky factor. It gets as much more on its diagonal as the factorisation needs (`root`),
and only then; what it got is recorded with the factors.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..fitted import Factors
from . import left_vectors

Side = Literal["auto", "input", "output"]
VERSION = 2
"""Of the numbers that `whiten` gives; part of the key of every fit that is made of them."""

_OVERFLOW = "a weight or its statistics hold NaN or infinite entries; the model's activations overflow"
_LEAST_JITTER = 1e-12
_WIDEST = 1e9
"""Spread of G's diagonal up to which the output side is as good; its eigenvalues are the squares of W S's spectrum."""


class Root(NamedTuple):
    """A matrix of second moments in a form that many weights with the same input can be weighted by; see `root`.

    Attributes:
        lower: L (n, n), lower triangular, float64.
        regular: L Lᵀ (n, n), float64.
        jitter: what the diagonal got, in shares of its mean.
    """

    lower: Tensor
    regular: Tensor
    jitter: float


def whiten(
    weight: Tensor,
    gram: Tensor | Root,
    gradients: Tensor | None = None,
    side: Side = "auto",
    jitter: float = 0.0,
    mean: Tensor | None = None,
) -> Factors:
    """Decompose W so that each truncation minimises tr(R (W - BA) G (W - BA)ᵀ).

    Args:
        weight: W (m, n).
        gram: G (n, n), second moments of the inputs, up to a factor, or what `root` made of it.
        gradients: R (m, m), second moments of the output gradients, up to a factor; None is the identity.
        side: which problem is solved without gradients; the result is the same. ``auto`` takes the output side where
            m < n and G's diagonal does not spread over more than nine orders of magnitude.
        jitter: see `root`; of no effect on what it made already.
        mean: (n,) mean input; gives the factors an offset that restores the mean output.

    Returns:
        Factors in float32. The squares of the spectrum are the losses of dropping a component. Their ``jitter`` says
        what G, and R where it is given, got on the diagonal.

    Raises:
        ValueError: a matrix holds a NaN or an infinity.
    """
    wide = weight.detach().double()
    if not bool(torch.isfinite(wide).all()):
        raise ValueError(_OVERFLOW)
    m, n = wide.shape
    lower, regular, added = gram if isinstance(gram, Root) else root(gram.to(wide), jitter)
    jitters = [added]
    if gradients is not None:
        # With R = C Cᵀ the loss is ‖Cᵀ (W - BA) L‖². U holds the left singular vectors of Cᵀ W L; the optimum is
        # Cᵀ BA = U_r U_rᵀ Cᵀ W, so that B = C⁻ᵀ U_r and A = U_rᵀ Cᵀ W, and L is never inverted.
        outer, _, added = root(gradients.to(wide), jitter)
        jitters.append(added)
        image = outer.T @ wide
        left, spectrum = left_vectors(image @ lower)
        right = left.T @ image
        left = torch.linalg.solve_triangular(outer.T, left, upper=True)
    else:
        if side == "output" or (side == "auto" and m < n and _spread(regular) <= _WIDEST):
            # W G Wᵀ = (W L)(W L)ᵀ has the same U, and eigenvalues s²; past min(m, n) they are rounding errors of 0.
            left, squares = _descending(wide @ regular @ wide.T)
            left, spectrum = left[:, : min(m, n)], squares[: min(m, n)].clamp_min(0).sqrt()
        else:
            left, spectrum = left_vectors(wide @ lower)
        # SVD_r(W L) L⁻¹ = U_r U_rᵀ W: no solve with L is needed.
        right = left.T @ wide
    left, right = balance(left, right)
    tensors = {"left": left, "right": right, "spectrum": spectrum}
    if mean is not None:
        centre = mean.to(wide)
        tensors |= {"output_mean": wide @ centre, "hidden_mean": right @ centre}
    return Factors(**{key: value.float() for key, value in tensors.items()}, jitter=tuple(jitters))


def root(gram: Tensor, jitter: float = 0.0) -> Root:
    """Return the Cholesky factor L of a matrix of second moments, the matrix L Lᵀ, and the jitter in it.

    The factor of G itself is accepted if it is finite and min L_ii² / G_ii > n·ε, ε of float64: no input is to rounding
    a combination of those before it. Otherwise G + j·mean(diag G)·I is tried with j = 1e-12 and ten times more until
    that holds. So inputs that never occur keep a little weight, and the factors of full rank give back W itself.

    Args:
        gram: G (n, n), float64, symmetric but for rounding.
        jitter: the least j, added whether it is needed or not.

    Returns:
        L (n, n) lower triangular, L Lᵀ (n, n), and j. For a matrix of zeros both are the identity and j is 1.

    Raises:
        ValueError: G holds a NaN or an infinity.
    """
    if not bool(torch.isfinite(gram).all()):
        raise ValueError(_OVERFLOW)
    regular = (gram + gram.T) / 2
    # A view: writing to it below changes `regular`. Each jitter starts from `own`, so that they do not add up.
    diagonal = regular.diagonal()
    mean, own, least = float(diagonal.mean()), diagonal.clone(), len(gram) * torch.finfo(gram.dtype).eps
    if mean <= 0:
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        return Root(eye, eye, 1.0)
    added = jitter
    while True:
        diagonal.copy_(own + added * mean)
        lower, failed = torch.linalg.cholesky_ex(regular)
        if not failed and bool(torch.isfinite(lower).all()):
            share = lower.diagonal().square() / diagonal
            if float(share.min()) > least:
                return Root(lower, regular, added)
        added = max(_LEAST_JITTER, 10 * added)


def _spread(gram: Tensor) -> float:
    """Return the largest diagonal entry over the least, which is above 0."""
    return float(gram.diagonal().max() / gram.diagonal().min())


def balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give each component's two vectors the same norm, which conditions later training and low precision."""
    a, b = left.norm(dim=0), right.norm(dim=1)
    scale = torch.where((a > 0) & (b > 0), (b / a.clamp_min(1e-300)).sqrt(), torch.ones_like(a))
    return left * scale, right / scale[:, None]


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors.flip(1), values.flip(0)
