"""Fisher-weighted SVD: errors count more where the task loss is sensitive.

Hsu et al., ICLR 2022 (arXiv 2207.00112). The paper's matrix is (in, out) and one weight is shared by each of its rows,
that is by each *input* feature; in the (out, in) layout of ``nn.Linear`` these are the columns. With
f_j = Σ_i E[(∂L/∂W_ij)²] the method minimises ‖(W - BA) diag(√f)‖_F: SVD of W·diag(√f), the right factor divided by √f
again. The Fisher is per example, on the finetuned model's own task loss, labels shifted once.

A token embedding E (V, d) is (in, out) as the paper writes its matrices: what enters a lookup is a token, and one
weight is shared by its row. The gradient of a head that is tied to it is part of that of E.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base import CalibrationData, methods
from ..calibration.collection import input_fisher
from ..calibration.driver import CalibratedCompressor
from ..calibration.frequencies import distinct_tokens
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..groups import Group
from ..linalg import svd
from ..linalg.rows import factor_rows
from ..linalg.whitening import Root
from ..matrixwise import by_name
from ..requirements import Requirements
from ..working import svd_bytes

_FLOOR = 1e-6  # of the mean: keeps inputs without any gradient finite, after normalising f by its mean


@methods.register("fwsvd")
class FWSVD(CalibratedCompressor):
    """SVD weighted by the empirical Fisher information.

    Args:
        axis: ``in`` (the paper) weights input features, ``out`` output features; of a token embedding its rows are the
            input features.
        samples: task examples for the Fisher; None uses all.
        batch_size: examples per backward pass; has no influence on the result.
    """

    requires = Requirements(
        statistics=True,
        gradients=True,
        embeddings=True,
        paper="arXiv 2207.00112",
        status="measured",
        note="agrees with five code bases on the axis; no official code",
    )

    axis: Literal["in", "out"] = "in"
    samples: int | None = Field(default=1024, ge=1)

    def collect(
        self, model: nn.Module, data: CalibrationData | None, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Tensor]]:
        """Yield each group with the Fisher information per input (or output) feature of its matrix.

        Rows of an embedding count as though each token came in one more example, with the mean information of a token
        that an example holds (Laplace): most tokens of a vocabulary are in none, and have no gradient of a lookup.
        """
        if data is None:
            raise ValueError("fwsvd needs task data for its Fisher information")
        names = [group.name for group in groups]
        fisher = input_fisher(model, names, data, self.samples, self.batch_size, self.axis)
        for group in groups:
            if group.embedding and self.axis == "in":
                total = fisher[group.name].double()
                one_more = total.sum() / max(distinct_tokens(data, self.samples, self.batch_size), 1)
                fisher[group.name] = total + one_more
        return by_name(groups, fisher)

    def decompose(self, weight: Tensor, statistic: Tensor | None = None, rank: int | None = None) -> Factors:
        """Return the factors of the weighted problem; a constant ``statistic`` of any size gives the plain SVD."""
        if statistic is None:
            raise ValueError("fwsvd needs the Fisher information of the matrix")
        scale = fisher_scale(statistic).to(weight)
        if self.axis == "in":
            u, s, vt = svd(weight * scale, rank)
            root = s.sqrt()
            return Factors(u * root, root[:, None] * vt / scale, s)
        u, s, vt = svd(weight * scale[:, None], rank)
        root = s.sqrt()
        return Factors(u * root / scale[:, None], root[:, None] * vt, s)

    def decompose_embedding(self, weight: Tensor, statistic: Tensor | None = None, rank: int | None = None) -> Factors:
        """Return the factors of an embedding whose rows (or columns) are weighted."""
        if statistic is None:
            raise ValueError("fwsvd needs the Fisher information of the embedding")
        scale = fisher_scale(statistic).to(weight.device)
        if self.axis == "in":
            return factor_rows(weight, scale**2, rank=rank)
        return factor_rows(weight, inputs=Root(scale.diag(), scale.square().diag(), 0.0), rank=rank)


@decompose_bytes.register
def _(method: FWSVD, m: int, n: int) -> int:
    """Return the memory of the scaled matrix and its decomposition."""
    return 4 * m * n + svd_bytes(m, n)


def fisher_scale(fisher: Tensor) -> Tensor:
    """Return √(f/mean(f) + 1e-6); all ones where there was no gradient at all.

    Raises:
        ValueError: the Fisher information holds a NaN or an infinity.
    """
    wide = fisher.double()
    mean = wide.mean()
    if not torch.isfinite(mean):
        raise ValueError("the Fisher information holds NaN or infinite entries; the task's gradients overflow")
    if not mean > 0:
        return torch.ones_like(wide)
    return (wide / mean + _FLOOR).sqrt()
