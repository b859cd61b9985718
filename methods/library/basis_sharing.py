"""Whitened SVD across layers: consecutive layers share one input basis for each kind of matrix.

Basis Sharing (Wang et al., ICLR 2025, arXiv 2410.03765; TUDa-HWAI/Basis_Sharing ``group.py``): g consecutive layers' q,
k, v, gate and up matrices are stacked along the output axis, whitened by the sum of their input Grams, and truncated;
the input basis is stored once. o and down stay private. g = 1 is SVD-LLM. The authors' refit of the coefficients and
their LoRA are not done.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from ...models.matrices import Matrix
from ..base import CalibrationData, methods
from ..calibration.collection import input_moments
from ..calibration.driver import MomentCompressor, pooled
from ..calibration.moments import Moments
from ..estimates import decompose_bytes
from ..fitted import Factors
from ..groups import Group
from ..linalg.whitening import VERSION, whiten
from ..requirements import Requirements
from ..working import root_bytes, whiten_bytes

SHARED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
_LAYER = re.compile(r"^(.*?\.)(\d+)(\..+)$")


@methods.register("basis-sharing")
class BasisSharing(MomentCompressor):
    """SVD-LLM over groups of consecutive layers.

    Args:
        layers: g, how many consecutive layers share.
        kinds: last names of the matrices that share, with '+' between them; others are decomposed alone.
        jitter: added to the diagonal of each Gram matrix, in shares of its mean; see ``svd-llm``.
    """

    requires = Requirements(
        statistics=True,
        shares="across layers",
        paper="arXiv 2410.03765",
        status="code",
        note="grouping as the authors' code; not verified at 7B",
    )

    layers: int = Field(default=2, ge=1)
    kinds: str = "+".join(SHARED)
    jitter: float = Field(default=0.0, ge=0, lt=1)

    def fit_key(self) -> dict[str, Any]:
        """Return the name, the options that the factors depend on, and the version of `whitening`."""
        return super().fit_key() | {"version": VERSION}

    def groups(self, model: nn.Module) -> list[Group]:
        """Return groups of the same kind in consecutive layers, in the order of their first members."""
        shared = set(self.kinds.split("+"))
        members: dict[tuple[Any, ...], list[Matrix]] = {}
        for matrix in self.targets(model):
            numbered = _LAYER.match(matrix.name)
            alike = numbered is not None and matrix.name.rpartition(".")[2] in shared
            if numbered is not None and alike:
                # Of one width, because members are stacked along their outputs and share A (r, n).
                key: tuple[Any, ...] = (numbered[1], int(numbered[2]) // self.layers, numbered[3], matrix.in_features)
            else:
                key = (matrix.name,)
            members.setdefault(key, []).append(matrix)
        return [Group(tuple(matrices)) for matrices in members.values()]

    def collect(
        self, model: nn.Module, data: CalibrationData | None, groups: Sequence[Group]
    ) -> Iterator[tuple[Group, Any]]:
        """Yield each group with the moments over all its members' inputs."""
        if data is None:
            raise ValueError("basis-sharing needs task data")
        names = [matrix.name for group in groups for matrix in group.members]
        moments_by_name = input_moments(model, names, data, self.samples, self.batch_size)
        for group in groups:
            yield group, pooled([next(moments_by_name)[1] for _ in group.members])

    def decompose(self, weight: Tensor, statistic: Moments | None = None, rank: int | None = None) -> Factors:
        """Return the whitened factors of the stack."""
        if statistic is None:
            raise ValueError("basis-sharing needs the moments of the group's inputs")
        return whiten(weight, statistic.gram, jitter=self.jitter)


@decompose_bytes.register
def _(method: BasisSharing, m: int, n: int) -> int:
    """Return the memory of the weighted problem, whose moments are factorised beside the stack in float64."""
    return max(whiten_bytes(m, n, m < n), 8 * m * n + root_bytes(n))
