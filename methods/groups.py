"""Matrices that are decomposed together: alone, or several that read the same input and share their first factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..models.matrices import Matrix
from ..models.streamed import weight_of
from .ranks.units import Unit


@dataclass(frozen=True)
class Group:
    """One or more matrices of equal input width, stacked along the output axis.

    With several members the stack W = [W_1; …; W_g] (Σm, n) is decomposed as a whole: A (r, n) is stored once, at the
    first member, and B is cut into the members' rows.

    Attributes:
        members: in the order of the model.
    """

    members: tuple[Matrix, ...]

    def __post_init__(self) -> None:
        if len({matrix.in_features for matrix in self.members}) != 1:
            raise ValueError(f"{', '.join(m.name for m in self.members)} have inputs of different widths")

    @property
    def name(self) -> str:
        """Name of the first member."""
        return self.members[0].name

    @property
    def embedding(self) -> bool:
        """Whether it is the token embedding, which is decomposed alone."""
        return self.members[0].embedding

    @property
    def reader(self) -> str:
        """Name of the linear layer whose input the group multiplies; empty for an embedding without a tied head."""
        return self.members[0].head if self.embedding else self.name

    @property
    def in_features(self) -> int:
        """n, width of the common input."""
        return self.members[0].in_features

    @property
    def out_features(self) -> int:
        """Σm, height of the stack."""
        return sum(matrix.out_features for matrix in self.members)

    def unit(self, affine: bool = False) -> Unit:
        """Return what a budget needs to know: r·(n + Σm) entries, and a bias for members without one if ``affine``."""
        m, n = self.out_features, self.in_features
        overhead = sum(matrix.out_features for matrix in self.members if not matrix.bias) if affine else 0
        lookup = self.embedding and not self.reader
        return Unit(self.name, m * n, m + n, min(m, n), overhead=overhead, lookup=lookup)

    def weight(self, model: nn.Module) -> Tensor:
        """Return the stacked weight (Σm, n) in float32."""
        return torch.cat([weight_of(model, matrix.name).float() for matrix in self.members])

    def split(self, stacked: Tensor) -> list[Tensor]:
        """Cut the rows of a (Σm, …) tensor into the members' parts."""
        return list(stacked.split([matrix.out_features for matrix in self.members]))


def singles(matrices: Sequence[Matrix]) -> list[Group]:
    """Return each matrix as a group of its own."""
    return [Group((matrix,)) for matrix in matrices]
