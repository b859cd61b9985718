"""What each rank policy promises beyond meeting the budget."""

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.ranks.budget import Allocation, Budget
from lowrank_bench.methods.ranks.policies._search import Search, grid
from lowrank_bench.methods.ranks.policies._shares import dense_rank, tail_energy
from lowrank_bench.methods.ranks.policies.base import Evidence, parse_policy, policies
from lowrank_bench.methods.ranks.policies.laser import Laser
from lowrank_bench.methods.ranks.policies.loss import LossBased
from lowrank_bench.methods.ranks.policies.surgical import Surgical
from lowrank_bench.methods.ranks.units import ModelShape, Unit

_TYPES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")


def transformer(layers: int = 4, width: int = 32) -> ModelShape:
    units = []
    for layer in range(layers):
        for name in _TYPES:
            m, n = (width, width) if "attn" in name else (width, 3 * width)
            units.append(Unit(f"layers.{layer}.{name}", m * n, m + n, min(m, n)))
    return ModelShape(sum(unit.parameters for unit in units) + 500, tuple(units))


def decaying(shape: ModelShape, scale: float = 1.0) -> dict[str, Tensor]:
    """Spectra that decay at a speed of their own for each unit."""
    return {
        unit.name: scale * (1 + index) * torch.arange(1, unit.max_rank + 1).double() ** -(0.3 + 0.2 * index)
        for index, unit in enumerate(shape.units)
    }


def share(shape: ModelShape, allocation: Allocation, unit: Unit) -> float:
    return allocation.ranks[unit.name] * unit.cost / unit.parameters if unit.name in allocation.ranks else 1.0


@given(
    st.lists(st.tuples(st.floats(1e-3, 10), st.integers(1, 1000)), min_size=1, max_size=8),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_loss_keeps_the_mean_of_each_type(members: list[tuple[float, int]], mean: float, floor: float) -> None:
    """Clipping included, the removed shares average R, keep the floor, and follow the weights."""
    weights, sizes = [w for w, _ in members], [size for _, size in members]
    removed = LossBased(floor=floor).removed(weights, sizes)(mean)
    total = sum(size * part for size, part in zip(sizes, removed, strict=True))
    assert total == pytest.approx(mean * sum(sizes), abs=1e-6 * sum(sizes))
    assert all(-1e-9 <= part <= 1 - floor * (1 - mean) + 1e-9 for part in removed)
    ordered = [part for _, part in sorted(zip(weights, removed, strict=True))]
    assert all(b >= a - 1e-9 for a, b in pairwise(ordered))
    if max(weights) / (sum(s * w for s, w in zip(sizes, weights, strict=True)) / sum(sizes)) * mean <= 1 - floor:
        ratios = [part / weight for part, weight in zip(removed, weights, strict=True)]
        assert max(ratios) == pytest.approx(min(ratios), abs=1e-9)


@pytest.mark.parametrize("scale", [0.0, 1e-6, 0.3, 1.0, 1e4])
@pytest.mark.parametrize("ratio", [1.3, 2.0, 5.0])
def test_loss_compresses_less_where_more_would_be_lost(scale: float, ratio: float) -> None:
    """Inside a type; for any scale of the losses, those below 1 and 0 included."""
    shape = transformer()
    spectra = decaying(shape, scale)
    allocation = Budget(ratio, guard=False).allocate(shape, parse_policy("loss"), spectra)
    q = (shape.parameters / ratio - shape.untouched) / sum(unit.parameters for unit in shape.units)
    for kind in _TYPES:
        units = [unit for unit in shape.units if unit.name.endswith(kind)]
        tails = [tail_energy(unit, spectra[unit.name].tolist(), q * unit.parameters / unit.cost) for unit in units]
        ranks = [allocation.ranks[unit.name] for unit in units]
        for (tail, rank), (other_tail, other) in combinations(zip(tails, ranks, strict=True), 2):
            assert (rank - other) * (tail - other_tail) >= 0 or abs(rank - other) <= 1
        parameters = sum(rank * unit.cost for rank, unit in zip(ranks, units, strict=True))
        assert abs(parameters - q * sum(unit.parameters for unit in units)) < 2 * len(units) * units[0].cost
        if scale == 1.0:
            assert max(ranks) - min(ranks) >= 2


@settings(deadline=None, max_examples=100)
@given(st.lists(st.lists(st.integers(0, 9), min_size=4, max_size=12), min_size=2, max_size=4), st.floats(0.2, 0.9))
def test_greedy_loses_nothing_by_an_exchange(rows: list[list[int]], part: float) -> None:
    """No swap of a kept for a dropped component of the same cost lowers Σ dropped s², and with equal costs none of
    all selections of that size is better."""
    units = tuple(Unit(f"u{i}", 10_000, (20, 20, 30, 30)[i], len(row)) for i, row in enumerate(rows))
    spectra = {f"u{i}": torch.tensor(sorted(row, reverse=True)).double() for i, row in enumerate(rows)}
    shape = ModelShape(sum(unit.parameters for unit in units), units)
    least = sum(unit.cost for unit in units)
    whole = sum(unit.cost * unit.max_rank for unit in units)
    budget = Budget(shape.parameters / (least + part * (whole - least)), guard=False)
    ranks = budget.allocate(shape, parse_policy("greedy(normalise=none)"), spectra).ranks
    for a in units:
        for b in units:
            if a.cost == b.cost and ranks[a.name] > 1 and ranks[b.name] < b.max_rank:
                weakest_kept, best_dropped = spectra[a.name][ranks[a.name] - 1], spectra[b.name][ranks[b.name]]
                assert weakest_kept >= best_dropped
    equal = ModelShape(20_000, units[:2])
    ranks = Budget(20_000 / (20 * 7 + 1), guard=False).allocate(equal, parse_policy("greedy(normalise=none)"), spectra)
    first, second = (spectra[unit.name] for unit in units[:2])
    splits = [(r, min(7 - r, len(second))) for r in range(1, min(len(first), 6) + 1)]
    best = max(float(first[:r].square().sum() + second[:o].square().sum()) for r, o in splits)
    own = float(first[: ranks.ranks["u0"]].square().sum() + second[: ranks.ranks["u1"]].square().sum())
    assert own == best


@pytest.mark.parametrize(("rho", "ratio"), [(0.1, 8.0), (0.5, 2.0), (0.5, 6.0)])
def test_laser_shrinks_all_matrices_in_proportion_below_its_share(rho: float, ratio: float) -> None:
    """The first matrices of the model get no more than the last ones where all are cut and that is not enough."""
    units = tuple(Unit(f"u{i}", 80 * 80, 160, 80) for i in range(6))
    measured = {"laser": torch.tensor([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])}
    allocation = Budget(ratio).allocate(ModelShape(6 * 80 * 80, units), Laser(rho=rho), measured=measured)
    ranks = list(allocation.ranks.values())
    assert len(ranks) == 6
    assert max(ranks) - min(ranks) <= 1
    assert max(ranks) <= rho * 80


def test_laser_cuts_in_the_order_of_harm() -> None:
    units = tuple(Unit(f"u{i}", 80 * 80, 160, 80) for i in range(3))
    measured = {"laser": torch.tensor([3.0, 1.0, 2.0])}
    allocation = Budget(3 / (2 + 0.2)).allocate(ModelShape(3 * 80 * 80, units), Laser(), measured=measured)
    assert allocation.ranks == {"u1": 8}


def test_greedy_weighs_by_the_measured_loss() -> None:
    """Of two equal matrices the one whose truncation hurts more gets more; one that breaks the model gets most."""
    shape = transformer(3)
    spectra = {unit.name: torch.arange(unit.max_rank, 0, -1).double() for unit in shape.units}
    harm = {"layers.0": 0.1, "layers.1": 1.0, "layers.2": math.nan}

    def loss(ranks: Mapping[str, int]) -> float:
        return 2.0 + sum(harm[name[:8]] for name in ranks)

    policy = parse_policy("greedy(normalise=loss)")
    allocation = Budget(3).allocate(shape, policy, spectra, policy.measure(shape.units, spectra, loss))
    for kind in _TYPES:
        ranks = [allocation.ranks[f"layers.{layer}.{kind}"] for layer in range(3)]
        assert ranks[0] < ranks[1] <= ranks[2] + 1, (kind, ranks)
        assert abs(ranks[1] - ranks[2]) <= 1
    plain = Budget(3).allocate(shape, parse_policy("greedy"), spectra)
    assert abs(plain.ranks["layers.0.mlp.up_proj"] - plain.ranks["layers.1.mlp.up_proj"]) <= 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.floats(0.1, 0.999))
def test_sensitivity_takes_the_least_harmful_compressions(seed: int, level: float) -> None:
    """At any cut each matrix has the smallest share among its compressions below the cut, as in the authors' code."""
    shape, policy = transformer(2), parse_policy("sensitivity(least=0.3)")
    generator = torch.Generator().manual_seed(seed)
    grid_shares = [0.3 + 0.1 * i for i in range(7)]
    losses = {unit.name: torch.rand(7, generator=generator).double() for unit in shape.units}
    if seed % 3 == 0:
        losses[shape.units[0].name][0] = math.nan
    wants = policy.demands(Evidence(shape.units, measured=losses))
    entries = sorted(
        ((unit.name, kept_share, math.inf if math.isnan(loss) else loss) for unit in shape.units
         for kept_share, loss in zip(grid_shares, losses[unit.name].tolist(), strict=True)),
        key=lambda entry: -entry[2],
    )  # fmt: skip
    cut = math.floor((level / 0.999 - 0.1) / 0.9 * len(entries) + 1e-9)
    smallest = {unit.name: 1.0 for unit in shape.units}
    if cut < 0:
        return
    for name, kept_share, _ in entries[cut:]:
        smallest[name] = min(smallest[name], kept_share)
    for unit, want in zip(shape.units, wants, strict=True):
        even = unit.parameters / unit.cost
        expected = smallest[unit.name] * even if smallest[unit.name] < 1 else math.ceil(even)
        assert want(level) == pytest.approx(expected)


def test_sensitivity_measures_every_matrix_alone() -> None:
    shape, asked = transformer(1), []

    def loss(ranks: Mapping[str, int]) -> float:
        asked.append(dict(ranks))
        return 1.0

    policy = parse_policy("sensitivity(step=0.3)")
    measured = policy.measure(shape.units, {}, loss)
    assert all(len(ranks) == 1 for ranks in asked)
    assert [ranks["layers.0.mlp.up_proj"] for ranks in asked if "layers.0.mlp.up_proj" in ranks] == [2, 9, 16]
    assert all(values.shape == (3,) for values in measured.values())
    allocation = Budget(2.5).allocate(shape, policy, measured=measured)  # equal losses: equal shares
    shares = [share(shape, allocation, unit) for unit in shape.units]
    assert max(shares) - min(shares) <= 0.3 + 1 / 12


def test_lagrangian_ranks_follow_the_root_of_score_over_cost() -> None:
    """A flat spectrum of k values has the effective rank k, one value has 1."""
    units = (Unit("flat", 256**2, 512, 256), Unit("peak", 256**2, 512, 256), Unit("wide", 256 * 1024, 1280, 256))
    peak = torch.zeros(256)
    peak[:4] = 1e-30  # squares of it would be zero
    spectra = {"flat": torch.full((256,), 3.0), "peak": peak, "wide": torch.full((256,), 1e30)}
    shape = ModelShape(sum(unit.parameters for unit in units), units)
    ranks = Budget(4, guard=False).allocate(shape, parse_policy("lagrangian"), spectra).ranks
    assert ranks["peak"] == pytest.approx(ranks["flat"] / math.sqrt(256 / 4), abs=1)
    assert ranks["flat"] / ranks["wide"] == pytest.approx(math.sqrt(1280 / 512), rel=0.05)
    tail = Budget(8, guard=False).allocate(shape, parse_policy("lagrangian(score=tail)"), spectra).ranks
    assert tail["peak"] <= 4 < tail["flat"]


def test_modules_keeps_shares_in_the_proportion_of_the_weights() -> None:
    shape = transformer(3, 128)
    text = "modules(q_proj=0.5; mlp.up_proj=2; layers.1.self_attn.q_proj=1.5)"
    allocation = Budget(5).allocate(shape, parse_policy(text))
    shares = {unit.name: share(shape, allocation, unit) for unit in shape.units}
    base = shares["layers.0.mlp.down_proj"]
    for name, weight in (("0.self_attn.q_proj", 0.5), ("1.self_attn.q_proj", 1.5), ("2.mlp.up_proj", 2.0)):
        assert shares[f"layers.{name}"] / base == pytest.approx(weight, rel=0.15)
    with pytest.raises(UserError, match=r"called 'qproj'; there are down_proj, q_proj, up_proj, v_proj"):
        Budget(5).allocate(shape, parse_policy("modules(qproj=2)"))
    for wrong in ("modules(q_proj=0)", "modules(q_proj=-1)", "modules(q_proj=x)", "modules(default=.inf)"):
        with pytest.raises(UserError, match="is not usable"):
            parse_policy(wrong)


def made_up(shape: ModelShape) -> tuple[Any, list[dict[str, int]]]:
    asked: list[dict[str, int]] = []
    spectra = decaying(shape)

    def loss(ranks: Mapping[str, int]) -> float:
        asked.append(dict(ranks))
        parts = (float(spectra[n][r:].square().sum() / spectra[n].square().sum()) for n, r in ranks.items())
        return 1.0 + sum(parts)

    return loss, asked


def searched(shape: ModelShape, loss: Any, tolerance: float, first: int) -> dict[str, int]:
    """SFSD's search as it is published, in its plainest form."""
    ranks: dict[str, int] = {}
    for number, unit in enumerate(reversed(shape.units[first:]), 1):
        for rank in grid(unit):
            if math.exp(loss({**ranks, unit.name: rank})) <= math.exp(loss({})) * (1 + tolerance) ** number:
                ranks[unit.name] = rank
                break
    return ranks


def stored(shape: ModelShape, ranks: Mapping[str, int]) -> int:
    return shape.untouched + sum(
        unit.stored(ranks[unit.name], True) if unit.name in ranks else unit.parameters for unit in shape.units
    )


@pytest.mark.parametrize(("ratio", "first"), [(1.4, 2), (2.0, 2), (4.0, 2), (8.0, 2), (16.0, 0)])
def test_surgical_finds_the_smallest_tolerance_that_meets_the_budget(ratio: float, first: int) -> None:
    """The ranks lie between those of the two tolerances at which the bisection ends, done here without any shortcut."""
    shape = transformer(width=64)
    loss, asked = made_up(shape)
    allocation = Budget(ratio).allocate(shape, parse_policy("surgical"), loss=loss)
    assert len(asked) == len({tuple(sorted(ranks.items())) for ranks in asked}), "asked twice for the same"
    low, high, under, over = 1e-5, 1e3, {unit.name: 1 for unit in shape.units[first:]}, dict[str, int]()
    for _ in range(8):
        middle = math.sqrt(low * high)
        ranks = searched(shape, loss, middle, first)
        if stored(shape, ranks) <= shape.parameters / ratio:
            high, under = middle, ranks
        else:
            low, over = middle, ranks
    assert (low * (1 - 1e-9) if over else 0.0) <= 0.99 / allocation.level - 1 <= high * (1 + 1e-9)
    for unit in shape.units:
        rank, dense = allocation.ranks.get(unit.name, unit.max_rank), unit.max_rank
        assert rank >= under.get(unit.name, dense)
        assert rank <= max(over.get(unit.name, dense), under.get(unit.name, dense)) + 1  # one for the remainder
    if first:
        assert all(unit.name not in allocation.ranks for unit in shape.units[:first])


def test_surgical_at_a_fixed_tolerance_searches_once() -> None:
    """And scales what it found, up or down, so the order of the kept shares stays."""
    shape = transformer(width=64)
    loss, asked = made_up(shape)
    expected = searched(shape, loss, 0.2, 2)
    for ratio in (1.5, 6.0):
        asked.clear()
        allocation = Budget(ratio).allocate(shape, parse_policy("surgical(tolerance=0.2)"), loss=loss)
        assert len(asked) <= 1 + 10 * 14
        for kind in _TYPES:
            names = [unit.name for unit in shape.units if unit.name.endswith(kind)]
            pairs = [(expected.get(name, 10**6), allocation.ranks.get(name, 10**6)) for name in names]
            assert all((a - b) * (x - y) >= 0 or abs(x - y) <= 1 for (a, x), (b, y) in combinations(pairs, 2))


def with_head(shape: ModelShape, parameters: int) -> ModelShape:
    """Add an output head behind the blocks."""
    head = Unit("lm_head", parameters, parameters // 32 + 32, 32)
    return ModelShape(shape.parameters + parameters, (*shape.units, head))


@pytest.mark.parametrize("delta", [0.02, 0.1, 0.5])
@pytest.mark.parametrize("blocks", [3, 5])
def test_surgical_goes_in_the_order_and_with_the_exponents_of_the_released_code(delta: float, blocks: int) -> None:
    """Written from the description of its loop: indices of all linear layers, head included, from last but one."""
    shape = with_head(transformer(blocks, 64), 64 * 64)
    loss, asked = made_up(shape)
    layers, dense, ranks, limits = [unit.name for unit in shape.units], math.exp(loss({})), dict[str, int](), {}
    start = (len(layers) - 1) // 8
    for index in reversed(range(len(layers) - 1)):
        if index < start:
            continue
        limits[layers[index]] = dense * (1 + delta) ** (len(layers) - 1 - index)
        for rank in grid(shape.units[index]):
            if math.exp(loss({**ranks, layers[index]: rank})) <= limits[layers[index]]:
                ranks[layers[index]] = rank
                break
    assert layers[-1] == "lm_head" not in limits
    assert limits[layers[-2]] == pytest.approx(dense * (1 + delta))
    asked.clear()
    policy = parse_policy(f"surgical(tolerance={delta})")
    assert isinstance(policy, Surgical)
    evidence = Evidence(shape.units, loss=loss, share=0.6)
    level, chosen = 0.99 / (1 + delta), {}
    for unit, demand in zip(shape.units, policy.demands(evidence), strict=True):
        if demand(level) < dense_rank(unit):
            chosen[unit.name] = round(demand(level))
    assert chosen == {name: rank for name, rank in ranks.items() if rank < dense_rank(shape.units[layers.index(name)])}
    newest = [list(trial)[-1] for trial in asked if trial]
    assert list(dict.fromkeys(newest)) == list(limits)


def test_surgical_visits_a_head_that_the_budget_cannot_leave_dense_last() -> None:
    """A head of a third of the model; and units without numbers, of which none is taken for a head."""

    def order(shape: ModelShape, ratio: float) -> list[str]:
        loss, asked = made_up(shape)
        Budget(ratio).allocate(shape, parse_policy("surgical(tolerance=0.1)"), loss=loss)
        return list(dict.fromkeys(list(trial)[-1] for trial in asked if trial))

    plain = transformer(4, 64)
    names = [unit.name for unit in plain.units]
    assert order(plain, 2) == names[:1:-1]
    assert order(with_head(plain, 64 * 64), 2) == names[:1:-1]
    large = with_head(plain, 64 * 64 * 16)
    assert order(large, 4) == [*names[::-1], "lm_head"]
    assert order(large, 1.4) == names[::-1]
    assert order(large, 1.1) == names[:1:-1]
    odd = ModelShape(plain.parameters, tuple(replace(unit, name=unit.name.replace(".", "")) for unit in plain.units))
    assert order(odd, 2) == [unit.name for unit in odd.units][:1:-1]


def with_lookup(shape: ModelShape, parameters: int) -> ModelShape:
    """Add a token embedding that no head is tied to, which is listed last."""
    rows = Unit("embed_tokens", parameters, parameters // 32 + 32, 32, lookup=True)
    return ModelShape(shape.parameters + parameters, (*shape.units, rows))


def visits(shape: ModelShape, affordable: float) -> list[str]:
    """Return the units in the order in which the search cuts them, at a number of parameters for all of them."""
    loss, asked = made_up(shape)
    evidence = Evidence(shape.units, loss=loss, share=affordable / sum(unit.parameters for unit in shape.units))
    parse_policy("surgical(tolerance=0.1)").demands(evidence)
    return list(dict.fromkeys(list(trial)[-1] for trial in asked if trial))


@pytest.mark.parametrize("head", [64 * 64, 64 * 64 * 16])
@pytest.mark.parametrize("rows", [64 * 64, 64 * 64 * 16])
def test_surgical_takes_no_embedding_for_the_head(head: int, rows: int) -> None:
    """The head stays dense as without the embedding, which comes before the first matrix and so is visited after it."""
    plain = with_head(transformer(4, 64), head)
    shape = with_lookup(plain, rows)
    untouched = sum(unit.parameters for unit in plain.units[:2])
    for affordable in (2.1 * (head + untouched), 2.1 * (head + untouched + rows), 1.9 * head):
        before, after = visits(plain, affordable), visits(shape, affordable)
        assert [name for name in after if name != "embed_tokens"] == before
        assert ("embed_tokens" in after) == (affordable < 2 * (head + untouched + rows))
        if "embed_tokens" in after:
            assert after[after.index("embed_tokens") + 1 :] == [name for name in before if name == "lm_head"]


def test_surgical_without_the_head_leaves_blocks_as_they_are_beside_an_embedding() -> None:
    """A head that is left out leaves the embedding the last unit, which is no head then either."""
    plain = transformer(4, 64)
    shape, untouched = with_lookup(plain, 64 * 64), 2 * 64 * 64
    for affordable in (2.1 * untouched, 2.1 * (untouched + 64 * 64)):
        expected = [unit.name for unit in plain.units][:1:-1]
        assert visits(plain, affordable) == expected
        assert visits(shape, affordable) == expected + ["embed_tokens"] * (affordable < 3 * untouched)


@pytest.mark.parametrize("bound", [1, 7, 60])
def test_surgical_stays_within_its_evaluations(bound: int) -> None:
    shape = transformer()
    loss, asked = made_up(shape)
    allocation = Budget(3).allocate(shape, parse_policy(f"surgical(evaluations={bound})"), loss=loss)
    assert len(asked) <= bound
    assert 0 <= shape.parameters / 3 - allocation.parameters < 128


def test_surgical_by_accuracy_is_not_cumulative() -> None:
    """With error rates the whole model may become δ worse, however many matrices are cut."""
    shape = transformer(2)
    loss, _ = made_up(shape)
    cumulative = Search(loss, shape.units, "loss", 10_000).run(0.3, None)
    once = Search(loss, shape.units, "accuracy", 10_000).run(0.3, None)
    assert cumulative is not None
    assert once is not None
    assert loss(once) <= loss({}) + 0.3 < loss(cumulative)
    assert parse_policy("surgical(metric=accuracy)").asks() == "accuracy"


def test_what_a_policy_lacks_is_said() -> None:
    with pytest.raises(ValueError, match="needs the loss"):
        parse_policy("surgical").demands(Evidence(transformer().units))
    with pytest.raises(UserError, match="no option 'normalize'; did you mean 'normalise'"):
        parse_policy("greedy(normalize=none)")
    with pytest.raises(UserError, match="did you mean 'surgical'"):
        parse_policy("surgicl")
    with pytest.raises(UserError, match="write name"):
        parse_policy("greedy(at=0.5")


def test_all_policies_are_listed_with_a_summary() -> None:
    rows = {row.name: row.summary for row in policies.listings()}
    assert {
        "uniform",
        "energy",
        "threshold",
        "sensitivity",
        "loss",
        "lagrangian",
        "greedy",
        "modules",
        "surgical",
        "zero-sum",
        "ilp",
    } <= set(rows)
    assert all(len(summary) > 20 for summary in rows.values())
