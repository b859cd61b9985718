"""Where time, steps and tokens went, summed up by row and by kind of stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...runners.specs import KINDS
from .data import Cost


@dataclass(frozen=True)
class Spent:
    """Sums of some stages.

    Attributes:
        name: a row of the tables, or what several rows share.
        shared: whether several rows needed these stages.
        seconds: by kind of stage.
        stages, steps, tokens: in all.
    """

    name: str
    shared: bool
    seconds: Mapping[str, float]
    stages: int
    steps: int
    tokens: int

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Spending:
    """Everything that was spent: each stage is in exactly one of the rows.

    Attributes:
        kinds: kinds of stages that occur, in the order of the protocol.
        rows: shared stages first, then rows by time.
        by_kind: the same stages by kind.
    """

    kinds: tuple[str, ...]
    rows: tuple[Spent, ...]
    by_kind: tuple[Spent, ...]


def spending(costs: Sequence[Cost]) -> Spending:
    """Sum up stages; what several rows needed is a row of its own."""
    kinds = tuple(kind for kind in KINDS if any(cost.kind == kind for cost in costs))
    everyone = {label for cost in costs for label in cost.labels if not label.startswith("uncompressed (")}
    groups: dict[tuple[str, ...], list[Cost]] = {}
    for cost in costs:
        groups.setdefault(cost.labels, []).append(cost)
    rows = [_spent(_name(labels, everyone), len(labels) > 1, part) for labels, part in groups.items()]
    rows.sort(key=lambda row: (not row.shared, -row.total, row.name))
    by_kind = [_spent(kind, False, [cost for cost in costs if cost.kind == kind]) for kind in kinds]
    return Spending(kinds, tuple(rows), tuple(by_kind))


def _name(labels: tuple[str, ...], everyone: set[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    if set(labels) >= everyone:
        return "shared by all"
    return "shared by " + ", ".join(labels)


def _spent(name: str, shared: bool, costs: Sequence[Cost]) -> Spent:
    seconds: Counter[str] = Counter()
    for cost in costs:
        seconds[cost.kind] += cost.seconds  # type: ignore[assignment]
    steps, tokens = sum(c.steps for c in costs), sum(c.tokens for c in costs)
    return Spent(name, shared, dict(seconds), len(costs), steps, tokens)
