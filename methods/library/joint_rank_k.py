"""Data-free joint approximation: queries with keys, and gate with up, share one input factor.

Joint rank-k (Peng et al., arXiv 2402.16319), of which only the abstract and a summary could be read: data-free, W_Q is
approximated together with W_K and W_gate with W_up. The stack along the output axis, M = [W_Q; W_K] ≈ U_k S_k V_kᵀ with
a shared A = V_kᵀ, is inferred: these are the pairs that read the same input, and Basis Sharing does the same across
layers. What happens to the other matrices is not known; here they are truncated alone (``others=dense`` leaves them).
The abstract's 80 % most likely means that 80 % of the parameters are kept.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from ...foundation.errors import UserError
from ...models.matrices import Matrix
from ..base import methods
from ..fitted import Factors
from ..groups import Group
from ..linalg import svd
from ..matrixwise import MatrixCompressor
from ..requirements import Requirements

PAIRS = (("q_proj", "k_proj"), ("gate_proj", "up_proj"))
"""Names of matrices in one module that read the same input and are decomposed together."""


@methods.register("joint-rank-k")
class JointRankK(MatrixCompressor):
    """SVD of stacked matrices that read the same input; the input factor is stored once.

    Args:
        others: what happens to matrices outside the pairs, ``alone`` (truncated by themselves) or ``dense``.
    """

    requires = Requirements(
        shares="q with k, gate with up",
        paper="arXiv 2402.16319",
        status="inferred",
        note="axis and untouched matrices inferred, paper's text not reachable",
    )

    others: Literal["alone", "dense"] = "alone"

    def groups(self, model: nn.Module) -> list[Group]:
        """Return the pairs and, unless they stay dense, all other matrices alone, in the model's order."""
        targets = {matrix.name: matrix for matrix in self.targets(model)}
        partner: dict[str, Matrix] = {}
        for name in targets:
            parent, _, kind = name.rpartition(".")
            for first, second in PAIRS:
                if kind == first and f"{parent}.{second}" in targets:
                    partner[name] = targets[f"{parent}.{second}"]
        taken = {matrix.name for matrix in partner.values()}
        groups = []
        for name, matrix in targets.items():
            if name in partner:
                groups.append(Group(ordered(targets, [matrix, partner[name]])))
            elif name not in taken and self.others == "alone":
                groups.append(Group((matrix,)))
        if not groups:
            raise UserError(
                f"{type(model).__name__} has no query and key, or gate and up matrices of their own; use others=alone"
            )
        return groups

    def decompose(self, weight: Tensor, statistic: object = None, rank: int | None = None) -> Factors:
        """Return the SVD of the stack with S split evenly."""
        u, s, vt = svd(weight, rank)
        root = s.sqrt()
        return Factors(u * root, root[:, None] * vt, s)


def ordered(targets: dict[str, Matrix], members: list[Matrix]) -> tuple[Matrix, ...]:
    """Return the members in the order of the model, so that the owner of a shared factor comes first."""
    position = {name: index for index, name in enumerate(targets)}
    return tuple(sorted(members, key=lambda matrix: position[matrix.name]))
