"""A control: the input columns (or output rows) of largest norm are kept as they are, the others dropped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import methods
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..matrixwise import MatrixCompressor
from ..requirements import Requirements


@methods.register("magnitude")
class Magnitude(MatrixCompressor):
    """W ≈ W[:, S] I_S with S the r columns of largest norm; rows where W is wide. Stored as factors, as all are."""

    requires = Requirements(
        embeddings=True,
        status="control",
    )

    def decompose(self, weight: Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        """Return the selection; the spectrum holds the norms."""
        m, n = weight.shape
        wide = weight if m >= n else weight.T
        norms, order = wide.norm(dim=0).sort(descending=True, stable=True)
        ordered = wide[:, order]
        one_hot = torch.eye(len(order), device=weight.device)[order]
        return Factors(ordered, one_hot, norms) if m >= n else Factors(one_hot.T, ordered.T, norms)

    def decompose_embedding(self, weight: Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        """Return the columns of an embedding, which are dimensions of the residual stream, as those of any matrix."""
        if rank is None or weight.shape[0] < weight.shape[1]:
            return self.decompose(weight, statistic, rank)
        norms, order = weight.norm(dim=0).sort(descending=True, stable=True)
        one_hot = torch.eye(len(order), device=weight.device)[order[:rank]]
        return Factors(weight[:, order[:rank]], one_hot, norms)


@decompose_bytes.register
def _(method: Magnitude, m: int, n: int) -> int:
    """Return the memory of the chosen columns, and of the selection twice."""
    return 4 * (m * n + 2 * min(m, n) ** 2)
