"""SVD with input channels scaled by their mean activation.

ASVD (Yuan et al., arXiv 2312.05821; hahnyuan/ASVD4LLM ``act_aware_utils.py``, ``modules/svd_linear.py``): W diag(s) is
decomposed with s_j = (mean |x_j|)^α + 1e-6, α = 0.5. Only a diagonal, so not the optimum of the outputs' error. The
authors' randomised SVD is replaced by an exact one; where theirs fails they go on with a random layer.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from ..base import methods
from ..calibration.driver import MomentCompressor
from ..calibration.moments import Moments
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..linalg import left_vectors
from ..linalg.whitening import balance
from ..requirements import Requirements
from ..working import svd_bytes


@methods.register("asvd")
class ASVD(MomentCompressor):
    """W ≈ SVD_r(W S) S⁻¹ with a diagonal S of activation magnitudes.

    Args:
        alpha: exponent of the magnitudes.
    """

    requires = Requirements(
        statistics=True,
        measures=True,
        policy="sensitivity",
        ranks="global, by sensitivity",
        paper="arXiv 2312.05821",
        status="code",
        note="exact SVD for the authors' randomised one; not verified at 7B",
    )

    samples: int | None = Field(default=32, ge=1)
    grams: ClassVar[bool] = False

    alpha: float = Field(default=0.5, ge=0)
    policy: str = "sensitivity"

    def decompose(self, weight: Tensor, statistic: Moments | None = None, rank: int | None = None) -> Factors:
        """Return the factors; α = 0 gives the plain SVD."""
        if statistic is None:
            raise ValueError("asvd needs the moments of the matrix's input")
        wide = weight.double()
        scale = (statistic.absolute.to(wide) / max(statistic.tokens, 1)) ** self.alpha + 1e-6
        left, s = left_vectors(wide * scale)
        # SVD_r(W S) S⁻¹ = U_r U_rᵀ W, so that nothing is divided by a small entry of S.
        left, right = balance(left, left.T @ wide)
        return Factors(left.float(), right.float(), s.float())


@decompose_bytes.register
def _(method: ASVD, m: int, n: int) -> int:
    """Return the memory of a float64 decomposition of the scaled matrix, and of the factors on the way."""
    return 16 * m * n + svd_bytes(m, n, 8) + 12 * min(m, n) * (m + n)
