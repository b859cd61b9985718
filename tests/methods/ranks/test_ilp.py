"""The integer program of LEMS, and the divergence that it measures."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.groups import singles
from lowrank_bench.methods.matrixwise import MatrixCompressor
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies._shares import tail_energy
from lowrank_bench.methods.ranks.policies.base import Evidence, parse_policy
from lowrank_bench.methods.ranks.policies.ilp import IntegerProgram, depth_factors, solve
from lowrank_bench.methods.ranks.probe import Probe, divergence
from lowrank_bench.methods.ranks.units import ModelShape, Unit
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import get_linear

CHOICE = st.tuples(st.integers(1, 60), st.integers(0, 1000).map(lambda x: x / 10))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(CHOICE, min_size=1, max_size=5), min_size=4, max_size=4), st.floats(0, 1))
def test_four_matrices_equal_brute_force(rows: list[list[tuple[int, float]]], part: float) -> None:
    costs, errors = ([[choice[i] for choice in row] for row in rows] for i in (0, 1))
    least, most = (sum(f(own) for own in costs) for f in (min, max))
    affordable = least + part * (most - least)
    picked = solve(costs, errors, affordable)  # type: ignore[arg-type]
    spent = sum(own[i] for own, i in zip(costs, picked, strict=True))
    own_error = sum(own[i] for own, i in zip(errors, picked, strict=True))
    assert spent <= affordable + 1e-6 * affordable
    allowed = (
        sum(own[i] for own, i in zip(errors, pick, strict=True))
        for pick in itertools.product(*(range(len(own)) for own in costs))
        if sum(own[i] for own, i in zip(costs, pick, strict=True)) <= affordable
    )
    assert own_error == pytest.approx(min(allowed), abs=1e-4)


def test_nothing_affordable_gives_the_cheapest() -> None:
    assert solve([[5, 3], [4, 9]], [[0.0, 1.0], [2.0, 0.0]], 6) == [1, 0]


def problem() -> tuple[ModelShape, dict[str, Tensor], dict[str, Tensor]]:
    units = tuple(Unit(f"layers.{i}.m", 64 * 64, 128, 64) for i in range(6))
    spectra = {u.name: (1 + i) * torch.arange(1, 65).double() ** -(0.3 + 0.2 * i) for i, u in enumerate(units)}
    measured = {u.name: torch.tensor([3.0, 0.1 + 0.3 * i]).double() for i, u in enumerate(units)}
    return ModelShape(sum(u.parameters for u in units) + 100, units), spectra, measured


@pytest.mark.parametrize("share", [0.2, 0.45, 0.7, 0.9])
def test_curves_hit_the_measurement_and_fall_to_zero_when_dense(share: float) -> None:
    shape, spectra, measured = problem()
    policy = IntegerProgram(step=1, least=0.01)
    affordable = share * sum(u.parameters for u in shape.units)
    for unit, part in zip(
        shape.units, policy.choices(Evidence(shape.units, spectra, share, measured), affordable), strict=True
    ):
        known = dict(zip(part.ranks, part.errors, strict=True))
        assert known[3] == pytest.approx(float(measured[unit.name][1]))
        assert (part.ranks[-1], part.errors[-1], part.costs[-1]) == (None, 0.0, unit.parameters)
        falls = [a - b for a, b in itertools.pairwise(part.errors[:-1])]
        assert all(fall >= 0 for fall in falls)
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(falls)), "not convex"


@pytest.mark.parametrize("name", ["svd", "svd-llm"])
@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "opt"])
def test_not_above_greedy_on_its_own_objective(name: str, architecture: str) -> None:
    """For the same curves: `greedy` takes gains of the measured weight per cost, and cannot jump to dense."""
    model, data = random_model(architecture), RandomData()
    method = create_method(name, {"policy": "ilp(trials=1;step=1;least=0.001)", "probe_samples": 4})
    assert isinstance(method, MatrixCompressor)
    fitted, units = method.fit(model, data), method.shape(model).units
    spectra, evidence = {u.name: fitted.spectrum(u.name) for u in units}, fitted.evidence()

    def objective(ranks: dict[str, int]) -> float:
        total = 0.0
        for unit in units:
            rank0, kl = evidence[unit.name].tolist()
            own = spectra[unit.name].double().tolist()
            if unit.name in ranks:
                total += kl / tail_energy(unit, own, rank0) * tail_energy(unit, own, float(ranks[unit.name]))
        return total

    measured = {n: torch.stack([e[0], e[1]]) for n, e in evidence.items()}
    for ratio in (1.3, 1.6, 2.5):
        budget, shape = Budget(ratio), method.shape(model)
        greedy = budget.allocate(shape, parse_policy("greedy(normalise=loss)"), spectra, measured)
        own = budget.allocate(shape, parse_policy("ilp(trials=1;step=1;least=0.001)"), spectra, evidence)
        assert objective(dict(own.ranks)) <= objective(dict(greedy.ranks)) * (1 + 1e-3)


def test_depth_factors_fall_from_the_first_block_to_the_last() -> None:
    units = [Unit(f"model.layers.{b}.q", 100, 20, 10) for b in range(5)] + [Unit("lm_head", 100, 20, 10)]
    for alpha in (0.0, 0.7, 3.0):
        factors = depth_factors(units, alpha, 2.0)
        assert factors[0] == pytest.approx(3.0)
        assert factors[4] == factors[5] == 1.0
        assert all(a >= b for a, b in itertools.pairwise(factors))
    assert depth_factors(units, 0.0, 2.0)[:5] == pytest.approx([3.0, 2.5, 2.0, 1.5, 1.0])
    assert depth_factors(units, 1.0, 0.0) == [1.0] * 6


def test_trials_take_the_pair_with_the_least_divergence() -> None:
    shape, spectra, measured = problem()
    asked: list[dict[str, int]] = []

    def loss(ranks: dict[str, int]) -> float:
        asked.append(dict(ranks))
        return -float(ranks.get("layers.0.m", 64))  # the more the first block keeps, the better

    plain = Budget(2.5).allocate(shape, parse_policy("ilp(trials=1)"), spectra, measured)
    allocation = Budget(2.5).allocate(shape, parse_policy("ilp(trials=6)"), spectra, measured, loss)  # type: ignore[arg-type]
    assert len(asked) == 6
    assert allocation.ranks.get("layers.0.m", 64) >= plain.ranks.get("layers.0.m", 64)
    assert allocation.ranks.get("layers.0.m", 64) >= max(ranks.get("layers.0.m", 64) for ranks in asked)


def test_the_divergence_is_that_of_the_truncated_model() -> None:
    model, data = random_model("llama"), RandomData(6)
    method = create_method("svd")
    groups, fitted = singles(method.targets(model)), method.fit(model, None)
    probe = Probe(model, groups, fitted, data, None, metric="divergence")
    assert probe.loss({}) == 0.0
    ranks = {group.name: 4 for group in groups}
    batch = next(data.batches(None, 6))
    scored = batch["labels"][:, 1:] != -100
    rows = []
    for which in ({}, ranks):
        with probe.truncated(which), torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            rows.append((logits[:, :-1][scored] / 0.6).log_softmax(-1))
    expected = torch.nn.functional.kl_div(rows[1], rows[0], log_target=True, reduction="none").sum(-1).mean()
    assert probe.loss(ranks) == pytest.approx(float(expected), rel=1e-4)
    assert probe.loss({groups[0].name: 4}) >= 0
    weight = get_linear(model, groups[0].name).weight
    with torch.no_grad():
        weight[0, 0] = float("nan")
    assert probe.loss({groups[1].name: 4}) == math.inf, "logits that are not finite count as the worst"


def test_divergence_is_zero_for_equal_logits_and_positive_else() -> None:
    first, second = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert divergence(first, first).abs().max() == 0
    assert (divergence(first, second) > 0).all()


def test_a_pruning_run_has_no_dense_model_to_compare_with() -> None:
    with pytest.raises(UserError, match="take another policy, such as surgical"):
        create_method("bs", {"final_policy": "ilp"})
