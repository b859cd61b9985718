"""What a budget is shared among: the units of a model whose ranks are chosen, and its size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """One thing whose rank is chosen: a matrix, or a group of matrices that share a factor.

    Attributes:
        name: dotted module name (of the first member).
        parameters: entries stored when it stays dense.
        cost: entries stored per rank, m + n for a single matrix.
        max_rank: largest rank that makes sense, min(m, n) for a single matrix.
        min_rank: smallest rank a method can produce.
        overhead: entries that factorising adds whatever the rank (an added bias).
        lookup: whether it is a token embedding that no head is tied to: the first matrix of a model, and the last unit.
    """

    name: str
    parameters: int
    cost: int
    max_rank: int
    min_rank: int = 1
    overhead: int = 0
    lookup: bool = False

    def factorised(self, rank: int) -> int:
        """Entries stored as factors of that rank."""
        return rank * self.cost + self.overhead

    def saves(self, rank: int) -> bool:
        """Whether factors of that rank are smaller than the dense matrix."""
        return self.factorised(rank) < self.parameters

    def stored(self, rank: int, guard: bool) -> int:
        """Entries stored at that rank; with the break-even guard never more than the dense matrix."""
        return self.factorised(rank) if self.saves(rank) or not guard else self.parameters


@dataclass(frozen=True)
class ModelShape:
    """What a budget needs to know of a model: its size and its units.

    Attributes:
        parameters: of the whole model, tied ones once.
        units: what is factorised.
        hint: how more of the model could be, for a ratio that is out of reach; may be empty.
    """

    parameters: int
    units: tuple[Unit, ...]
    hint: str = ""

    @property
    def untouched(self) -> int:
        """D: parameters that stay as they are, whatever the ranks."""
        return self.parameters - sum(unit.parameters for unit in self.units)
