"""Truncated SVD of every weight matrix.

Ben Noach & Goldberg, AACL 2020 (aclanthology.org/2020.aacl-main.88), without their feature distillation: finetune,
truncate, finetune, as Basis Selection's baseline (arXiv 2405.15877, §4.1). By Eckart-Young no matrix of rank r is
closer to W in the Frobenius norm; the error is the sum of the dropped squared singular values.
"""

from typing import Any

from torch import Tensor

from ..base import methods
from ..fitted import Factors
from ..linalg import svd
from ..matrixwise import MatrixCompressor
from ..requirements import Requirements


@methods.register("svd")
class SVD(MatrixCompressor):
    """W ≈ U_r S_r V_rᵀ, with √S in both factors, which conditions the training that follows."""

    requires = Requirements(
        paper="Ben Noach & Goldberg, AACL 2020",
        status="measured",
        note="reproduces Eckart-Young; the paper's distillation left out",
    )

    def fit_key(self) -> dict[str, Any]:
        """Return one name for the factors, whatever the method that asks for them is called."""
        return super().fit_key() | {"factors": "svd"}

    def decompose(self, weight: Tensor, statistic: Tensor | None = None, rank: int | None = None) -> Factors:
        """Return the singular value decomposition with S split evenly."""
        u, s, vt = svd(weight, rank)
        root = s.sqrt()
        return Factors(u * root, root[:, None] * vt, s)
