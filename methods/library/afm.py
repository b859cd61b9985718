"""Principal components of each matrix's outputs, with the bias that restores their mean.

AFM (Yu & Wu, AAAI 2023), as restated by Bolaco (arXiv 2405.10616, eq. 2); LoRD (Kaushal 2023) is the same on code
models. With Cov(Y) = U Λ Uᵀ: B = U_r, A = U_rᵀ W, b = (I - U_r U_rᵀ) E[Y]. The loss is the sum of the dropped
eigenvalues of the centred covariance, which no bias-free factors can beat. Outputs need not be collected: Cov(Y) = W
Cov(X) Wᵀ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base import methods
from ..calibration.driver import MomentCompressor
from ..calibration.moments import Moments
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..linalg.whitening import VERSION, whiten
from ..requirements import Requirements
from ..working import whiten_bytes


class FeatureSpace(MomentCompressor):
    """What all methods with these factors share."""

    requires = Requirements(statistics=True, affine=True)

    def fit_key(self) -> dict[str, Any]:
        """Return one name for the factors, whatever the method that asks for them is called."""
        return super().fit_key() | {"factors": "feature-space", "version": VERSION}

    def decompose(self, weight: Tensor, statistic: Moments | None = None, rank: int | None = None) -> Factors:
        """Return the factors with the means that each rank's bias follows from."""
        if statistic is None:
            raise ValueError(f"{self.name} needs the moments of the matrix's input")
        mean = statistic.total / max(statistic.tokens, 1)
        inputs = self.rooted(statistic, lambda: statistic.gram - statistic.tokens * torch.outer(mean, mean), weight)
        return whiten(weight, inputs, mean=mean)


@decompose_bytes.register
def _(method: FeatureSpace, m: int, n: int) -> int:
    """Return the memory of the weighted problem, and of the centred Gram matrix."""
    return whiten_bytes(m, n, m < n) + 16 * n * n


@methods.register("afm")
class AFM(FeatureSpace):
    """PCA of the outputs, uniform ranks, one added bias a layer (counted)."""

    requires = Requirements(
        statistics=True,
        affine=True,
        paper="Yu & Wu, AAAI 2023",
        status="formula",
        note="loss equals the theorem's; not verified at 7B",
    )
