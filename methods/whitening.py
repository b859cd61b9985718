"""The one core of all methods that weight a matrix's error by second moments of its input, or of its output gradient.

min ‖(W - BA) X‖_F over rank-r B A has one solution, whichever way it is computed: SVD-LLM (Cholesky factor of the Gram
matrix), SVD-LLM V2 (its eigen form), DRONE (SVD of X) and Swift-SVD (principal components of the outputs) all give the
same product. Here everything is float64 and in eigen form, so a singular Gram matrix needs no retry; the cheaper side
is taken: the n x n input side, or the m x m output side, which needs no inverse at all.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .fitted import Factors
from .linalg import svd

Side = Literal["auto", "input", "output"]
JITTER = 1e-6
"""Least eigenvalue of a Gram matrix relative to its mean one; inputs that never occur keep this much weight, so that
the factors of full rank give back W itself."""


def whiten(
    weight: Tensor,
    gram: Tensor,
    gradients: Tensor | None = None,
    side: Side = "auto",
    jitter: float = JITTER,
    mean: Tensor | None = None,
) -> Factors:
    """Decompose W so that each truncation minimises tr(R (W - BA) G (W - BA)ᵀ).

    Args:
        weight: W (m, n).
        gram: G (n, n), second moments of the inputs, up to a factor.
        gradients: R (m, m), second moments of the output gradients, up to a factor; None is the identity.
        side: which eigenproblem is solved without gradients; the result is the same.
        jitter: see `JITTER`.
        mean: (n,) mean input; gives the factors an offset that restores the mean output.

    Returns:
        Factors in float32. The squares of the spectrum are the losses of dropping a component.

    Raises:
        ValueError: a matrix holds a NaN or an infinity.
    """
    wide = weight.detach().double()
    gram = gram.to(wide)
    gradients = None if gradients is None else gradients.to(wide)
    if not all(bool(torch.isfinite(x).all()) for x in (wide, gram, *(() if gradients is None else (gradients,)))):
        raise ValueError("a weight or its statistics hold NaN or infinite entries; the model's activations overflow")
    m, n = wide.shape
    if gradients is None and (side == "output" or (side == "auto" and m < n)):
        outer, spectrum_squared = _descending(wide @ _regular(gram, jitter) @ wide.T)
        kept = min(m, n)
        left = outer[:, :kept]
        right, spectrum = left.T @ wide, spectrum_squared[:kept].clamp_min(0).sqrt()
    else:
        values, vectors = _eigen(gram, jitter)
        root, inverse = vectors * values.sqrt(), (vectors / values.sqrt()).T
        core = wide @ root
        back = None
        if gradients is not None:
            weights, outputs = _eigen(gradients, jitter)
            core = (outputs * weights.sqrt()).T @ core
            back = outputs / weights.sqrt()
        u, spectrum, vt = svd(core)
        left = u if back is None else back @ u
        right = spectrum[:, None] * (vt @ inverse)
    left, right = balance(left, right)
    if mean is None:
        return Factors(left.float(), right.float(), spectrum.float())
    centre = mean.to(wide)
    return Factors(left.float(), right.float(), spectrum.float(), (wide @ centre).float(), (right @ centre).float())


def balance(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Give each component's two vectors the same norm, which conditions later training and low precision."""
    a, b = left.norm(dim=0), right.norm(dim=1)
    scale = torch.where((a > 0) & (b > 0), (b / a.clamp_min(1e-300)).sqrt(), torch.ones_like(a))
    return left * scale, right / scale[:, None]


def _regular(gram: Tensor, jitter: float) -> Tensor:
    """Return G + jitter·mean·I, symmetric; the identity for a zero matrix."""
    symmetric = (gram + gram.T) / 2
    mean = symmetric.diagonal().mean()
    eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return symmetric + jitter * mean * eye if mean > 0 else eye


def _eigen(gram: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """Return eigenvalues (n,), none below half the jitter, and eigenvectors (n, n) of the regular matrix."""
    regular = _regular(gram, jitter)
    values, vectors = torch.linalg.eigh(regular)
    return values.clamp_min(jitter * float(regular.diagonal().mean()) / 2), vectors


def _descending(matrix: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return vectors.flip(1), values.flip(0)
