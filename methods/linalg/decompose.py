"""The singular value decomposition of a matrix, or its leading part, by the algorithm that suits."""

from contextlib import suppress

import torch
from torch import Tensor

from .choice import Driver, choose
from .exact import eigen, lapack
from .subspace import leading

Triplets = tuple[Tensor, Tensor, Tensor]

TOLERANCE = 1e-3
"""How much larger than the optimum the residual of wanted ranks may be, relative to the optimum."""


def svd(
    weight: Tensor, rank: int | None = None, *, tolerance: float = TOLERANCE, driver: Driver | None = None
) -> Triplets:
    """Return the thin SVD U (…, m, r), s (…, r), Vᵀ (…, r, n) in float32 (float64 stays); r = min(m, n) without rank.

    Without a rank the result is LAPACK's, or one whose ‖W - U S Vᵀ‖_F, relative, and distance from orthonormal factors
    were checked to be within 1e-6. With a rank r the residual is within ``tolerance`` of the best possible,
    ‖W - U S Vᵀ‖_F ≤ (1 + tolerance) (Σ_{i>r} σ_i²)^½ + 1e-6 ‖W‖_F; each matrix is checked (`certificate.certified`) and
    decomposed in full where the check fails. Equal inputs on one machine give equal results.

    Args:
        weight: (…, m, n), any floating dtype; leading dimensions are batches.
        rank: how many leading triplets; None for all.
        tolerance: see above; 0 decomposes in full.
        driver: the algorithm, None for `choose`'s; for benchmarks and tests.

    Raises:
        ValueError: a rank outside 1..min(m, n), or the matrix holds a NaN or an infinity; there is no fallback that
            would hide it.
    """
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    side = min(wide.shape[-2:])
    if rank is not None and not 1 <= rank <= side:
        raise ValueError(f"the rank {rank} of a {wide.shape[-2]} x {wide.shape[-1]} matrix must be in 1..{side}")
    if not torch.isfinite(wide).all():
        raise ValueError("a weight matrix holds NaN or infinite entries and cannot be decomposed")
    wanted = None if rank == side or tolerance <= 0 else rank
    name = driver or choose(wide.shape, wanted, wide.device, wide.dtype)
    if name == "subspace" and wanted is not None:
        return _leading(wide, wanted, tolerance)
    u, s, vt = lapack(wide) if name == "lapack" else _eigen(wide)
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _leading(wide: Tensor, rank: int, tolerance: float) -> Triplets:
    if wide.dim() > 2:
        parts = [_leading(matrix, rank, tolerance) for matrix in wide.flatten(0, -3)]
        stacked = [torch.stack(part) for part in zip(*parts, strict=True)]
        u, s, vt = (part.unflatten(0, wide.shape[:-2]) for part in stacked)
        return u, s, vt
    with suppress(torch.linalg.LinAlgError):  # an eigenproblem that does not converge
        if (found := leading(wide, rank, tolerance)) is not None:
            return found
    u, s, vt = svd(wide)
    return u[:, :rank].clone(), s[:rank].clone(), vt[:rank].clone()


def _eigen(wide: Tensor) -> Triplets:
    with suppress(torch.linalg.LinAlgError):
        if (found := eigen(wide)) is not None:
            return found
    return lapack(wide)
