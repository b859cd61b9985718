"""SVD that minimises the error of each matrix's outputs on calibration data.

SVD-LLM (Wang et al., ICLR 2025, arXiv 2403.07378; AIoT-MLSys-Lab/SVD-LLM), truncation part: ‖(W - BA) X‖_F is least for
the truncated SVD of W S with S Sᵀ = X Xᵀ. The authors take the Cholesky factor and retry with more diagonal when it
fails; so does `whitening`, in float64. All layers see the dense model's
activations, as in the authors' W-only results. In place of their LoRA update this project has the recovery stage.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ..base import CalibrationData, methods
from ..calibration.collection import gradient_grams
from ..calibration.driver import MomentCompressor
from ..calibration.moments import GradientRule, Moments
from ..calibration.row_statistic import EMBEDDING_VERSION, RowStatistic, shrunk
from ..estimates import decompose_bytes, regular_bytes, statistic_bytes
from ..fitted import Factors
from ..groups import Group
from ..linalg.rows import factor_rows
from ..linalg.whitening import VERSION, Side, root, whiten
from ..ranks.policies.base import parse_policy
from ..requirements import Requirements
from ..working import whiten_bytes


class Whitened(MomentCompressor):
    """What all methods with these factors share.

    Args:
        side: the problem on the ``input`` or the ``output`` side, or the cheaper one; the result is the same.
        two_sided: also weight by the second moments of the output gradients (GFWSVD, KFAC-SVD, IO-SVD).
        shrink_input, shrink_output: share a of the mean diagonal mixed into the moments, (1-a)·C + a·mean(diag C)·I;
            used where ``two_sided``, with the defaults of KFAC-SVD's code.
        jitter: least share of the mean diagonal that is added to the diagonal of the moments; where they have no
            Cholesky factor with it, as much more as gives them one (`whitening.root`).
    """

    side: Side = "auto"
    two_sided: bool = False
    shrink_input: float = Field(default=0.1, ge=0, le=1)
    shrink_output: float = Field(default=0.3, ge=0, le=1)
    jitter: float = Field(default=0.0, ge=0, lt=1)

    @property
    def gradient_rule(self) -> GradientRule:
        """Which tokens' gradients count, and how large they may be; all as they are, unless a method says otherwise."""
        return GradientRule()

    def fit_key(self) -> dict[str, Any]:
        """Return one name for the factors, whatever the method that asks for them is called."""
        key = super().fit_key() | {"factors": "whitened", "version": VERSION}
        return key | {"embedding_version": EMBEDDING_VERSION} if self.embeddings else key

    def collect(
        self, model: nn.Module, data: CalibrationData | None, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Any]]:
        """Yield each group with its input moments and, if two-sided, its output-gradient moments (m, m)."""
        one_sided = super().collect(model, data, groups)
        if not self.two_sided or data is None:
            for group, moments in one_sided:
                yield group, moments if group.embedding else (moments, None)
            return
        # Of an embedding both sides: what is looked up, and the logits of a tied head.
        heads = {group.name: group.reader for group in groups if group.embedding and group.reader}
        # Read below in this order: each group's, and after an embedding its head's.
        names = [name for group in groups for name in (group.name, heads.get(group.name)) if name]
        rule = self.gradient_rule
        gradients = gradient_grams(
            model, names, data, self.samples, self.batch_size, rule=rule, diagonal=heads.values()
        )
        for group, statistic in one_sided:
            _, gram = next(gradients)
            if group.embedding:
                of_head = next(gradients)[1] if group.name in heads else None
                yield group, replace(statistic, gradients=gram, head_gradients=of_head)
            else:
                yield group, (statistic, gram)

    @property
    def least_jitter(self) -> float:
        """Return the option ``jitter``."""
        return self.jitter

    def decompose_embedding(
        self, weight: Tensor, statistic: RowStatistic | None = None, rank: int | None = None
    ) -> Factors:
        """Weight rows as one-sided methods do or, where gradients weigh too, by the quadratic model of the loss."""
        if statistic is None or statistic.gradients is None:
            return super().decompose_embedding(weight, statistic, rank)
        rows, columns = statistic.quadratic(self.shrink_input, self.shrink_output)
        mean = float(columns.diagonal().mean()) or 1.0  # goes to the rows, which leave the balance of factors as it is
        inputs = root((columns / mean).to(weight.device), self.jitter)
        return factor_rows(weight, rows * mean, inputs, rank)

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs; gradients where they weigh too, or the rank policy needs them."""
        gradients = self.two_sided or parse_policy(self.policy).needs_slopes
        return replace(super().requirements, gradients=gradients)

    def decompose(
        self, weight: Tensor, statistic: tuple[Moments, Tensor | None] | None = None, rank: int | None = None
    ) -> Factors:
        """Return the factors of the weighted problem; equal weights give the plain SVD."""
        if statistic is None:
            raise ValueError(f"{self.name} needs the moments of the matrix's input")
        moments, gradients = statistic
        if gradients is None:
            return whiten(weight, self.rooted(moments, lambda: moments.gram, weight, self.jitter), side=self.side)
        inputs = self.rooted(moments, lambda: shrunk(moments.gram, self.shrink_input), weight, self.jitter)
        return whiten(weight, inputs, shrunk(gradients, self.shrink_output), jitter=self.jitter)


@decompose_bytes.register
def _(method: Whitened, m: int, n: int) -> int:
    """Return the memory of the weighted problem."""
    output_side = method.side == "output" or (method.side == "auto" and m < n)
    return whiten_bytes(m, n, output_side, method.two_sided)


@regular_bytes.register
def _(method: Whitened, m: int, n: int) -> int:
    """Return the memory of the weighted problem where moments have full rank."""
    output_side = method.side == "output" or (method.side == "auto" and m < n)
    return whiten_bytes(m, n, output_side, method.two_sided, regular=True)


@statistic_bytes.register
def _(method: Whitened, group: Group) -> int:
    """Return the bytes of both Gram matrices; of an embedding's second side, what is looked up is as wide as a head's
    inputs, and the head's logits have one sum each."""
    inputs = 8 * group.in_features**2
    if not method.two_sided:
        return inputs
    return inputs + (inputs + 8 * group.out_features if group.embedding else 8 * group.out_features**2)


@methods.register("svd-llm")
class SVDLLM(Whitened):
    """W ≈ SVD_r(W S) S⁻¹ with S Sᵀ the Gram matrix of the inputs; uniform ranks."""

    requires = Requirements(
        statistics=True,
        embeddings=True,
        paper="arXiv 2403.07378",
        status="formula",
        note="truncation equals the paper's formula; not verified at 7B",
    )
