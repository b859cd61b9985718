"""The singular value decomposition of a matrix, or its leading part, by LAPACK or through its Gram matrix."""

from contextlib import suppress

import torch
from torch import Tensor

from .choice import Driver, choose
from .exact import eigen, lapack

Triplets = tuple[Tensor, Tensor, Tensor]


def svd(weight: Tensor, rank: int | None = None, *, driver: Driver | None = None) -> Triplets:
    """Return the thin SVD U (…, m, r), s (…, r), Vᵀ (…, r, n) in float32 (float64 stays); r = min(m, n) without rank.

    The result is LAPACK's, or one whose ‖W - U S Vᵀ‖_F, relative, and distance from orthonormal factors were checked to
    be within 1e-6. Equal inputs on one machine give equal results.

    Args:
        weight: (…, m, n), any floating dtype; leading dimensions are batches.
        rank: how many leading triplets; None for all.
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
    name = driver or choose(wide.shape, wide.device, wide.dtype)
    u, s, vt = lapack(wide) if name == "lapack" else _eigen(wide)
    return u[..., :rank], s[..., :rank], vt[..., :rank, :]


def _eigen(wide: Tensor) -> Triplets:
    with suppress(torch.linalg.LinAlgError):  # an eigenproblem that does not converge
        if (triplets := eigen(wide)) is not None:
            return triplets
    return lapack(wide)
