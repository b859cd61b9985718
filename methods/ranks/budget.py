"""From a whole-model ratio to integer ranks, everything counted.

A budget counts every parameter once: embeddings, norms, biases, tied tensors and whatever stays dense. What is shared
out is P0/ratio - D, where P0 is the size of the original model and D all that no method touches. The Basis Selection
authors count the same way: original size over compressed size (arXiv 2405.15877, footnote 1), in their code the sum of
``numel`` before over that after.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache, partial

from torch import Tensor

from ...foundation.errors import UserError
from .policies.base import Demand, Evidence, Loss, Policy, parse_policy
from .units import ModelShape, Unit

# 2^-60 is below the resolution of a float64 near level 1.
_BISECTIONS = 60


class RatioOutOfReachError(UserError):
    """More parameters stay as they are than the ratio leaves.

    Attributes:
        largest: the largest ratio within reach, rounded down; None if nothing would become smaller.
    """

    def __init__(self, message: str, largest: float | None) -> None:
        super().__init__(message)
        self.largest = largest


@dataclass(frozen=True)
class Allocation:
    """Ranks that meet a budget.

    Attributes:
        ranks: rank per unit that is stored as factors; a unit that is missing stays dense.
        parameters: parameters of the whole model afterwards.
        level: the policy's level that gave these ranks (for the energy policy: the kept share of the sum).
    """

    ranks: Mapping[str, int]
    parameters: int
    level: float


@dataclass(frozen=True)
class Budget:
    """A target for the whole model.

    Args:
        ratio: original parameters / compressed parameters, above 1.
        guard: keep a matrix dense when its factors would not be smaller (r >= κ = mn/(m+n)). Without the guard every
            matrix is factorised, as the Basis Selection authors' code does, even where that adds parameters.
        multiple: ranks are whole multiples of this number, as GPUs like them (rows of bfloat16 aligned to 32 bytes for
            16). A matrix of which not even one multiple is smaller stays dense; without the guard, or where training
            left it less than one multiple, it keeps the largest rank that it can have.

    Raises:
        UserError: a ratio that is not a finite number above 1, or a multiple below 1.
    """

    ratio: float
    guard: bool = True
    multiple: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ratio) and self.ratio > 1):
            raise UserError(
                f"the ratio {self.ratio:g} is not usable; a ratio is original parameters / compressed parameters and "
                "must be above 1, such as 2 for half the size"
            )
        if self.multiple < 1:
            raise UserError(
                f"the rank multiple {self.multiple} is not usable; it is a whole number of 1 or more, such as 16"
            )

    def allocate(
        self,
        shape: ModelShape,
        policy: Policy,
        spectra: Mapping[str, Tensor] | None = None,
        measured: Mapping[str, Tensor] | None = None,
        loss: Loss | None = None,
    ) -> Allocation:
        """Return the ranks, within one step of the target and never above it; a step is `multiple` ranks.

        The policy says which rank each unit wants at a level, which is rounded down to a multiple; the largest level
        that the budget affords is found by bisection, and what is left over is given out one step at a time to the unit
        that would want its next step first. The remainder is smaller than the next step of any unit that could still
        grow; where no multiple is left below break-even, the next step is to store the matrix dense.

        Args:
            shape: the model's size and units.
            policy: how to share.
            spectra: importance of each unit's components, descending, for policies that need it.
            measured: what the policy measured while fitting.
            loss: for policies that search; see `Evidence`.

        Raises:
            RatioOutOfReachError: names the largest one that is not.
        """
        # The ratio is the decimal that was typed: in floats 297 / 2.7 is below 110, so a reachable ratio was refused.
        affordable = shape.parameters / Fraction(repr(float(self.ratio))) - shape.untouched
        least = [self._least(unit) for unit in shape.units]
        smallest = sum(self._stored(unit, rank) for unit, rank in zip(shape.units, least, strict=True))
        if affordable < smallest:
            largest = _round_down(shape.parameters / (shape.untouched + smallest))
            rounded = f" with ranks in multiples of {self.multiple}" if self.multiple > 1 else ""
            raise RatioOutOfReachError(
                f"the ratio {self.ratio:g} is out of reach for this model{rounded}, of which {shape.untouched:,} of "
                f"{shape.parameters:,} parameters stay as they are; {_advice(largest, self.multiple)}{shape.hint}",
                largest,
            )
        whole = shape.parameters - shape.untouched
        share = min(max(float(affordable / whole), 0.0), 1.0) if whole else 1.0
        wants = policy.demands(Evidence(shape.units, spectra or {}, share, measured or {}, loss))

        # Bisection asks for few different ranks of a unit, most of them many times.
        usable = [cache(partial(self._round, unit)) for unit in shape.units]
        stored = [cache(partial(self._stored, unit)) for unit in shape.units]

        def ranks_at(level: float) -> list[int]:
            # 1e-9: a demand that is a whole number but for rounding counts as that rank, here as in `_level_of`.
            return [
                rounded(min(max(math.floor(want(level) + 1e-9), unit.min_rank), unit.max_rank))
                for unit, want, rounded in zip(shape.units, wants, usable, strict=True)
            ]

        def cost(ranks: Sequence[int]) -> int:
            return sum(entries(rank) for entries, rank in zip(stored, ranks, strict=True))

        # Bisection needs a cost that does not fall with the level, which `Demand` promises; `low` stays affordable.
        low, high = 0.0, 1.0
        if cost(ranks_at(high)) <= affordable:
            low = high
        for _ in range(_BISECTIONS if low < high else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if cost(ranks_at(middle)) <= affordable else (low, middle)
        ranks = ranks_at(low)
        if cost(ranks) > affordable:  # even level 0 wants more than there is, for a policy with a floor of its own
            ranks = least

        queue: list[tuple[float, int, int]] = []

        def offer(index: int) -> None:
            if (following := self._next(shape.units[index], ranks[index])) is not None:
                heapq.heappush(queue, (_level_of(wants[index], following), index, following))

        for index in range(len(ranks)):
            offer(index)
        left = affordable - cost(ranks)
        while queue:
            _, index, following = heapq.heappop(queue)
            step = stored[index](following) - stored[index](ranks[index])
            # A step that does not fit is not offered again: it keeps its price, and what is left only shrinks.
            if 0 < step <= left:
                ranks[index] = following
                left -= step
                offer(index)
        factorised = {
            unit.name: rank for unit, rank in zip(shape.units, ranks, strict=True) if unit.saves(rank) or not self.guard
        }
        return Allocation(factorised, shape.untouched + cost(ranks), low)

    def _stored(self, unit: Unit, rank: int) -> int:
        return unit.stored(rank, self.guard)

    def _least(self, unit: Unit) -> int:
        """Return the smallest usable rank: the first multiple, or the largest rank where there is no such multiple."""
        first = math.ceil(unit.min_rank / self.multiple) * self.multiple
        return first if first <= unit.max_rank and not self._dense(unit, first) else self._most(unit)

    def _most(self, unit: Unit) -> int:
        """Return the largest usable rank; with factors that are not smaller it means the dense matrix."""
        if self._dense(unit, unit.max_rank):
            return unit.max_rank
        last = unit.max_rank // self.multiple * self.multiple
        return last if last >= unit.min_rank and last > 0 else unit.max_rank

    def _round(self, unit: Unit, rank: int) -> int:
        # Not rounded: past break-even, the multiple below could turn a dense matrix into factors.
        if self._dense(unit, rank):
            return rank
        return min(max(rank // self.multiple * self.multiple, self._least(unit)), self._most(unit))

    def _next(self, unit: Unit, rank: int) -> int | None:
        """Return the usable rank after this one, or None; past the last multiple below break-even it is dense."""
        if self._dense(unit, rank) or rank >= self._most(unit):
            return None
        following = rank + self.multiple
        if following <= unit.max_rank and not self._dense(unit, following):
            return following
        # The least rank whose factors are not smaller, which `_stored` counts as the dense matrix.
        return math.ceil((unit.parameters - unit.overhead) / unit.cost)

    def _dense(self, unit: Unit, rank: int) -> bool:
        return self.guard and not unit.saves(rank)


def allocate_by_shapes(budget: Budget, shape: ModelShape, policy: str = "uniform") -> Allocation:
    """Return the ranks under a policy that needs no evidence; methods with the same units share the result.

    Raises:
        RatioOutOfReachError: see `Budget.allocate`.
    """
    return _allocate_by_shapes(budget, shape, policy, type(parse_policy(policy)))


# `cls` is only part of the key: a policy registered later under the same name must not get these ranks.
@lru_cache(maxsize=4096)
def _allocate_by_shapes(budget: Budget, shape: ModelShape, policy: str, cls: type[Policy]) -> Allocation:
    return budget.allocate(shape, parse_policy(policy))


def _round_down(ratio: float) -> float | None:
    for digits in (2, 4, 6, 9):
        rounded = math.floor(ratio * 10**digits) / 10**digits
        if rounded > 1:
            return rounded
    return None


def _advice(largest: float | None, multiple: int) -> str:
    if largest is not None:
        return f"ask for at most {largest:.10g}" + (" or a smaller rank multiple" if multiple > 1 else "")
    if multiple > 1:
        return "no matrix would become smaller, so ask for a smaller rank multiple"
    return "factors of the least rank would not make it smaller, so choose another model"


def _level_of(want: Demand, rank: int) -> float:
    low, high = 0.0, 1.0
    if want(high) < rank:
        return math.inf
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if want(middle) + 1e-9 >= rank else (middle, high)
    return high
