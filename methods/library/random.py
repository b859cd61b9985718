"""A control: projection onto random directions. What any method has to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import methods
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..linalg.rows import ROWS
from ..matrixwise import MatrixCompressor
from ..requirements import Requirements


@methods.register("random")
class RandomProjection(MatrixCompressor):
    """W ≈ W Q_r Q_rᵀ (or Q_r Q_rᵀ W where W is wide) with Q from the QR decomposition of Gaussian noise.

    Args:
        seed: of the noise.
    """

    requires = Requirements(
        embeddings=True,
        status="control",
    )

    seed: int = 42

    def decompose(self, weight: Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        """Return the projections, one more random direction with each rank; the spectrum is flat."""
        m, n = weight.shape
        side = min(m, n)
        noise = torch.randn(side, side, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        q = torch.linalg.qr(noise).Q.to(weight.device)
        wide = weight.double()
        left, right = (q, q.T @ wide) if m <= n else (wide @ q, q.T)
        flat = torch.full((side,), float(wide.norm()) / side**0.5)
        return Factors(left.float(), right.float(), flat)

    def decompose_embedding(self, weight: Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        """Return what `decompose` does, a few rows in float64 at a time: B takes 4·V bytes a part."""
        m, n = weight.shape
        if m < n:
            return self.decompose(weight, statistic, rank)
        noise = torch.randn(n, n, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        q = torch.linalg.qr(noise).Q.to(weight.device)[:, :rank]
        left, squares = torch.empty(m, q.shape[1], device=weight.device), 0.0
        for start in range(0, m, ROWS):
            rows = weight[start : start + ROWS].double()
            left[start : start + ROWS] = (rows @ q).float()
            squares += float(rows.square().sum())
        return Factors(left, q.T.float(), torch.full((n,), (squares / n) ** 0.5))


@decompose_bytes.register
def _(method: RandomProjection, m: int, n: int) -> int:
    """Return the memory of the noise, its QR decomposition and the projection, float64, and of the result."""
    side = min(m, n)
    return 8 * (2 * m * n + 4 * side * side) + 4 * (m * n + side * side)
