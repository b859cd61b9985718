"""Budgets: exact for any set of units, any ratio and every policy."""

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.ranks.budget import Allocation, Budget
from lowrank_bench.methods.ranks.policies.base import Demand, Evidence, Loss, Policy, parse_policy
from lowrank_bench.methods.ranks.units import ModelShape, Unit

# Policies whose demands are the same at every ratio, and those that look at the ratio first.
SAME_DEMANDS = (
    *("uniform", "energy", "threshold", "sensitivity", "lagrangian", "modules(unit0=0.3;default=2)"),
    *("greedy", "greedy(normalise=none)", "greedy(normalise=loss)"),
)
POLICIES = (
    *SAME_DEMANDS,
    *("loss", "loss(floor=0)", "lagrangian(score=tail)"),
    *("surgical(rounds=4)", "surgical(tolerance=0.1;untouched=0.6)", "surgical(metric=accuracy;rounds=3)"),
    *("surgical(evaluations=5)", "surgical(evaluations=1;tolerance=0.1)"),
    *("laser", "laser(rho=0.4;per_parameter=false)"),
)


@st.composite
def shapes(draw: st.DrawFn) -> ModelShape:
    units = []
    for index in range(draw(st.integers(1, 6))):
        m, n = draw(st.integers(1, 48)), draw(st.integers(1, 48))
        least = draw(st.integers(1, max(1, min(m, n) // 4)))
        overhead = draw(st.sampled_from([0, 0, m]))
        top = min(m, n) if draw(st.booleans()) else draw(st.integers(least, min(m, n)))  # or pruned already
        units.append(Unit(f"unit{index}", m * n, m + n, top, least, overhead))
    return ModelShape(sum(u.parameters for u in units) + draw(st.integers(0, 4000)), tuple(units))


def spectra(shape: ModelShape, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    by_unit = {}
    for index, unit in enumerate(shape.units):
        values = torch.rand(unit.max_rank, generator=generator).pow(1 + index).sort(descending=True).values
        by_unit[unit.name] = torch.zeros_like(values) if (seed + index) % 7 == 0 else values * (1 + index)
    return by_unit


def least_rank(unit: Unit, guard: bool, multiple: int) -> int:
    """The first multiple that is usable and smaller than dense; else the largest rank that there is, or dense."""
    ranks = range(max(unit.min_rank, 1), unit.max_rank + 1)
    usable = [rank for rank in ranks if rank % multiple == 0 and (unit.saves(rank) or not guard)]
    return usable[0] if usable else unit.max_rank


def reachable(shape: ModelShape, share: float, guard: bool, multiple: int = 1) -> float:
    """A ratio between the smallest above 1 (share 1) and the largest in reach (share 0)."""
    least = sum(unit.stored(least_rank(unit, guard, multiple), guard) for unit in shape.units)
    most = sum(unit.parameters for unit in shape.units) - 1
    assume(least <= most)
    ratio = shape.parameters / (shape.parameters - most - 1 + least + share * (most - least))
    ratio *= 1 - 1e-12  # as a decimal, 22 / 21 is a little more than what can be reached
    assume(ratio > 1)
    return ratio


def policy(name: str) -> Policy:
    return parse_policy(name)


def made_up_loss(shape: ModelShape, seed: int) -> Loss:
    """A loss that grows with what is dropped, not quite evenly; broken where the first unit keeps next to nothing."""
    values = spectra(shape, seed)

    def loss(ranks: Mapping[str, int]) -> float:
        total = 1.0
        for index, unit in enumerate(shape.units):
            if unit.name in ranks:
                rank, squares = ranks[unit.name], values[unit.name].double().square()
                if seed % 5 == 0 and index == 0 and rank <= unit.max_rank // 8:
                    return math.nan
                total += float(squares[rank:].sum() / (squares.sum() + 1e-9)) * (1 + 0.1 * math.sin(7 * rank + seed))
        return total

    return loss


def allocated(shape: ModelShape, budget: Budget, name: str, seed: int = 1) -> Allocation:
    """Allocate with all the evidence that any policy may need."""
    chosen, values, loss = policy(name), spectra(shape, seed), made_up_loss(shape, seed)
    measured = chosen.measure(shape.units, values, loss) if chosen.measures else None
    return budget.allocate(shape, chosen, values, measured, loss)


def allocate(shape: ModelShape, budget: Budget, name: str, seed: int = 1) -> Allocation | None:
    try:
        return allocated(shape, budget, name, seed)
    except UserError:
        return None


def demands(shape: ModelShape, name: str, share: float, seed: int = 1) -> list[Demand]:
    chosen, values, loss = policy(name), spectra(shape, seed), made_up_loss(shape, seed)
    measured = chosen.measure(shape.units, values, loss) if chosen.measures else {}
    return chosen.demands(Evidence(shape.units, values, share, measured, loss))


def recount(shape: ModelShape, ranks: Any) -> int:
    touched = sum(u.parameters for u in shape.units)
    stored = sum(ranks[u.name] * u.cost + u.overhead if u.name in ranks else u.parameters for u in shape.units)
    return int(shape.parameters - touched + stored)


@settings(deadline=None, max_examples=150)
@given(shapes(), st.floats(0.01, 1), st.sampled_from(POLICIES), st.booleans(), st.integers(0, 20))
def test_within_one_rank_and_never_above(shape: ModelShape, share: float, name: str, guard: bool, seed: int) -> None:
    ratio = reachable(shape, share, guard)
    allocation = allocated(shape, Budget(ratio, guard), name, seed)
    assert allocation.parameters == recount(shape, allocation.ranks)
    left = shape.parameters / Fraction(repr(ratio)) - allocation.parameters
    assert left >= 0
    units = {unit.name: unit for unit in shape.units}
    for unit_name, rank in allocation.ranks.items():
        unit = units[unit_name]
        assert unit.min_rank <= rank <= unit.max_rank
        assert not guard or rank * unit.cost + unit.overhead < unit.parameters
    growing = [units[unit_name] for unit_name, rank in allocation.ranks.items() if rank < units[unit_name].max_rank]
    if growing:
        assert left < min(unit.cost for unit in growing)
    if not guard:
        assert allocation.ranks.keys() == units.keys()


@settings(deadline=None, max_examples=200)
@given(shapes(), st.floats(0, 1), st.sampled_from(POLICIES), st.booleans(), st.sampled_from([2, 3, 8, 16]))
def test_ranks_are_multiples(shape: ModelShape, share: float, name: str, guard: bool, multiple: int) -> None:
    """Never above the target, below it by less than the next step of any unit, and no others but where they must be."""
    ratio = reachable(shape, share, guard, multiple)
    allocation = allocated(shape, Budget(ratio, guard, multiple), name)
    assert allocation.parameters == recount(shape, allocation.ranks)
    left = shape.parameters / Fraction(repr(ratio)) - allocation.parameters
    assert left >= 0
    for unit in shape.units:
        rank = allocation.ranks.get(unit.name)
        if rank is None:
            assert guard
            continue
        assert unit.min_rank <= rank <= unit.max_rank
        assert unit.saves(rank) or not guard
        if rank % multiple:  # no multiple fits between its least and its largest rank
            assert rank == unit.max_rank
            assert rank // multiple * multiple < unit.min_rank or rank < multiple
        following = rank + multiple if rank % multiple == 0 else unit.max_rank + 1
        if following <= unit.max_rank:
            assert left < unit.stored(following, guard) - unit.stored(rank, guard) or unit.stored(
                following, guard
            ) <= unit.stored(rank, guard)


@settings(deadline=None, max_examples=100)
@given(shapes(), st.floats(0, 1), st.floats(0, 1), st.sampled_from(SAME_DEMANDS), st.sampled_from([2, 8, 16]))
def test_multiples_keep_the_order_of_ratios(shape: ModelShape, a: float, b: float, name: str, multiple: int) -> None:
    low, high = sorted((a, b))
    deep, shallow = (
        allocated(shape, Budget(reachable(shape, share, True, multiple), True, multiple), name) for share in (low, high)
    )
    assert deep.level <= shallow.level


def test_multiples_by_hand() -> None:
    """640 x 640 in steps of 16: κ = 320. 64 x 16 has no multiple of 16 below κ = 12.8 and stays dense, or keeps 16."""
    big, small = Unit("big", 640 * 640, 1280, 640), Unit("small", 64 * 16, 80, 16)
    shape = ModelShape(1000 + big.parameters + small.parameters, (big, small))
    allocation = Budget(4, multiple=16).allocate(shape, policy("uniform"))
    assert allocation.ranks == {"big": 64}  # (411,624 / 4 - 2,024) / 1,280 = 78.8
    assert allocation.parameters == 1000 + 1024 + 64 * 1280
    assert Budget(4, guard=False, multiple=16).allocate(shape, policy("uniform")).ranks == {"big": 64, "small": 16}
    assert Budget(4).allocate(shape, policy("uniform")).ranks.keys() == {"big", "small"}
    with pytest.raises(
        UserError, match=r"in multiples of 16, of which .* ask for at most 18\.\d+ or a smaller rank mul"
    ):
        Budget(30, multiple=16).allocate(shape, policy("uniform"))
    for multiple in (0, -16):
        with pytest.raises(UserError, match=r"is a whole number of 1 or more, such as 16"):
            Budget(2, multiple=multiple)


def test_no_matrix_has_a_multiple() -> None:
    shape = ModelShape(2048, tuple(Unit(f"u{i}", 1024, 80, 16) for i in range(2)))
    with pytest.raises(UserError, match="no matrix would become smaller, so ask for a smaller rank multiple"):
        Budget(1.5, multiple=16).allocate(shape, policy("uniform"))


@settings(deadline=None, max_examples=100)
@given(shapes(), st.sampled_from(POLICIES), st.booleans())
def test_the_ratio_named_by_the_error_is_feasible(shape: ModelShape, name: str, guard: bool) -> None:
    with pytest.raises(UserError, match="out of reach") as caught:
        Budget(1e9, guard).allocate(shape, policy(name), spectra(shape, 1))
    named = re.search(r"ask for at most ([\d.]+)$", str(caught.value))
    if named is None:
        assert "choose another model" in str(caught.value)
        assert allocate(shape, Budget(1 + 1e-8, guard), name) is None
        return
    largest = float(named[1])
    assert allocate(shape, Budget(largest, guard), name) is not None
    assert allocate(shape, Budget(largest * 1.02, guard), name) is None


@pytest.mark.parametrize(("parameters", "ratio"), [(297, 2.7), (33, 1.1), (81, 5.4)])
def test_a_ratio_is_the_decimal_that_was_typed(parameters: int, ratio: float) -> None:
    """In floats the quotient is just below a whole number, of which the last parameter is needed."""
    affordable = round(parameters / ratio)
    assert parameters / ratio < affordable
    shape = ModelShape(parameters, (Unit("unit", parameters, affordable, 2, 1),))
    assert Budget(ratio, guard=False).allocate(shape, policy("uniform")).parameters == affordable


@settings(deadline=None, max_examples=100)
@given(shapes(), st.floats(0.01, 1), st.floats(0.01, 1), st.sampled_from(SAME_DEMANDS), st.booleans())
def test_a_deeper_ratio_has_a_lower_level(shape: ModelShape, a: float, b: float, name: str, guard: bool) -> None:
    deep, shallow = (allocated(shape, Budget(reachable(shape, share, guard), guard), name) for share in sorted((a, b)))
    assert deep.level <= shallow.level


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 6), st.integers(16, 64), st.floats(1.5, 6))
def test_uniform_gives_equal_matrices_equal_ranks(number: int, width: int, ratio: float) -> None:
    units = tuple(Unit(f"u{i}", width * width, 2 * width, width) for i in range(number))
    allocation = Budget(ratio).allocate(ModelShape(number * width * width, units), policy("uniform"))
    ranks = [allocation.ranks[unit.name] for unit in units]
    assert max(ranks) - min(ranks) <= 1
    assert abs(sum(ranks) - number * width / ratio / 2) < 1


def test_llama_2_7b_by_hand() -> None:
    """Embedding and head dense, uniform: the ranks worked out in the literature notes from the published shapes."""
    units = []
    for layer in range(32):
        units += [Unit(f"{layer}.attention{i}", 4096 * 4096, 8192, 4096) for i in range(4)]
        units += [Unit(f"{layer}.mlp{i}", 4096 * 11008, 15104, 4096) for i in range(3)]
    shape = ModelShape(6_738_415_616, tuple(units))
    assert shape.untouched == 2 * 131_072_000 + 266_240
    for ratio, attention, mlp in ((2, 982, 1432), (4, 449, 655), (7, 221, 322), (20, 23, 34)):
        allocation = Budget(ratio).allocate(shape, policy("uniform"))
        for kind, floor in (("attention", attention), ("mlp", mlp)):  # the remainder may add to the notes' floors
            ranks = [rank for name, rank in allocation.ranks.items() if kind in name]
            assert floor <= min(ranks) <= floor + 1
            assert max(ranks) <= min(ranks) + 1
        assert 0 <= 6_738_415_616 / ratio - allocation.parameters < 8192


@settings(deadline=None, max_examples=60)
@given(shapes(), st.floats(0.05, 1))
def test_energy_keeps_the_same_share_everywhere(shape: ModelShape, share: float) -> None:
    """Without the guard every unit's rank is the least one that reaches the common share, or one more (remainder)."""
    values = spectra(shape, 2)
    allocation = Budget(reachable(shape, share, False), guard=False).allocate(shape, policy("energy"), values)
    extra = 0
    for unit in shape.units:
        if not values[unit.name].any():
            continue
        cumulative = values[unit.name].double().cumsum(0) / values[unit.name].double().sum()
        least = max(int((cumulative < allocation.level * (1 - 1e-9)).sum()) + 1, unit.min_rank)
        assert allocation.ranks[unit.name] >= least
        extra += allocation.ranks[unit.name] - least
    assert extra <= 2 * len(shape.units) + sum(unit.max_rank for unit in shape.units if not values[unit.name].any())


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0, -2.0, float("nan"), float("inf")])
def test_unusable_ratios(ratio: float) -> None:
    with pytest.raises(UserError, match="must be above 1, such as 2 for half the size"):
        Budget(ratio)


@pytest.mark.parametrize("name", ["energy", "threshold", "loss", "lagrangian", "greedy"])
def test_policies_that_need_a_spectrum_say_so(name: str) -> None:
    unit = Unit("matrix", 100, 20, 10)
    with pytest.raises(ValueError, match="needs the spectrum of matrix"):
        policy(name).demands(Evidence((unit,)))
    assert policy(name).needs_spectrum


@settings(deadline=None, max_examples=150)
@given(shapes(), st.sampled_from(POLICIES), st.floats(0.01, 1), st.lists(st.floats(0, 1), min_size=2, max_size=8))
@example(
    ModelShape(20, tuple(Unit(f"unit{i}", 4, 4, 2) for i in range(5))), "laser", 1.0, [0.0, 0.0]
)  # (1 - 4/5)·5 < 1
def test_demand_never_falls_with_the_level(shape: ModelShape, name: str, share: float, levels: list[float]) -> None:
    """And it ends at full rank, so that no budget is left over because nobody wants it."""
    for unit, want in zip(shape.units, demands(shape, name, share), strict=True):
        ranks = [want(level) for level in sorted(levels)]
        assert all(b >= a - 1e-9 for a, b in pairwise(ranks))
        assert all(math.isfinite(rank) for rank in ranks)
        if spectra(shape, 1)[unit.name].any() or name != "energy":
            assert want(1.0) == pytest.approx(unit.max_rank)


@settings(deadline=None, max_examples=150)
@given(shapes(), st.sampled_from(POLICIES), st.floats(0.01, 1))
def test_level_0_wants_no_more_than_the_least_rank(shape: ModelShape, name: str, share: float) -> None:
    """A policy with a floor of its own has no say below it: the budget then gives ranks in the model's order."""
    for unit, want in zip(shape.units, demands(shape, name, share), strict=True):
        assert want(0.0) < unit.min_rank + 1


@settings(deadline=None, max_examples=40)
@given(shapes(), st.sampled_from(POLICIES), st.floats(0.01, 1))
def test_equal_evidence_gives_equal_ranks(shape: ModelShape, name: str, share: float) -> None:
    budget = Budget(reachable(shape, share, True))
    assert allocated(shape, budget, name) == allocated(shape, budget, name)
