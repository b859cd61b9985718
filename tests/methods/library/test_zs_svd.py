"""The properties of ZS-SVD and of the policy `zero-sum`."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Fitted
from lowrank_bench.methods.groups import singles
from lowrank_bench.methods.library.zs_svd import ZSSVD, corrected
from lowrank_bench.methods.linalg.whitening import root, whiten
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies.base import parse_policy
from lowrank_bench.methods.ranks.policies.zero_sum import dropping_order
from lowrank_bench.methods.ranks.probe import Examples, Probe
from lowrank_bench.methods.ranks.slopes import fitted_slopes, slopes, weight_gradients
from lowrank_bench.methods.ranks.units import ModelShape, Unit
from lowrank_bench.models.architectures import random_model

SLOPES = st.lists(
    st.lists(st.floats(-3, 3, allow_nan=False).map(lambda x: round(x, 3)), min_size=1, max_size=9),
    min_size=1,
    max_size=6,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@torch.no_grad()
def exact_loss(model: torch.nn.Module, data: RandomData) -> float:
    """Return the mean over examples of their mean cross-entropy, in float64."""
    losses = []
    for batch in data.batches(None, 1):
        logits, targets = model(input_ids=batch["input_ids"]).logits[0, :-1], batch["labels"][0, 1:]
        losses.append(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(("m", "n", "seed"), [(7, 5, 0), (5, 7, 1), (6, 6, 2)])
def test_slopes_are_the_authors_formula_and_add_up_to_the_gradient(m: int, n: int, seed: int) -> None:
    """-s_i u_iᵀ (∇ L⁻ᵀ) v_i for W L = U S Vᵀ; their sum is -⟨W, ∇⟩ whatever L is."""
    w, gradient, x = random(m, n, seed=seed), random(m, n, seed=seed + 10), random(n, 40, seed=seed + 20)
    gram = x @ x.T
    lower = root(gram).lower
    actual = slopes(whiten(w, gram), gradient)
    u, s, vt = torch.linalg.svd(w @ lower, full_matrices=False)
    weighted = torch.linalg.solve_triangular(lower, gradient.T, upper=False).T  # the authors' ∇ L⁻ᵀ
    expected = -s * torch.einsum("ik,ij,kj->k", u, weighted, vt)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    for weights in (gram, torch.eye(n, dtype=torch.float64), torch.diag(torch.arange(1.0, n + 1).double())):
        total = float(slopes(whiten(w, weights), gradient).sum())
        assert total == pytest.approx(-float((w * gradient).sum()), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "opt", "gemma"])
def test_a_slope_is_the_change_of_the_loss(architecture: str) -> None:
    """By central differences of the real model's loss along one dropped part."""
    model, data = random_model(architecture).double(), RandomData()
    method = create_method("zs-svd")
    groups = singles(method.targets(model))
    fitted = method.fit(random_model(architecture), data)
    examples = Examples(data, None, 8, model)
    predicted = fitted_slopes(model, groups, fitted, examples.batches)
    for group in (groups[0], groups[5]):
        for part in (0, 9):
            factors = fitted.factors(group.name)
            step = 1e-3 * (factors.left[:, part : part + 1] @ factors.right[part : part + 1]).double()
            weight = model.get_submodule(group.name).weight
            dense, losses = weight.data.clone(), []
            for sign in (1, -1):
                weight.data = dense - sign * step
                losses.append(exact_loss(model, data))
            weight.data = dense
            measured = (losses[0] - losses[1]) / 2e-3
            assert measured == pytest.approx(float(predicted[group.name][part]), rel=2e-2, abs=1e-5)


def test_gradients_leave_the_model_as_it_was() -> None:
    model, data = random_model("llama"), RandomData()
    model.train()
    first = next(model.parameters())
    first.requires_grad_(False)
    examples = Examples(data, None, 3, model)
    gradients = weight_gradients(model, singles(create_method("svd").targets(model)), examples.batches)
    assert model.training
    assert not first.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert sum(bool(gradient.any()) for gradient in gradients.values()) == len(gradients)


@settings(deadline=None, max_examples=200)
@given(SLOPES)
def test_the_sum_stays_within_one_part(rows: list[list[float]]) -> None:
    """|S| is at most the largest change dropped so far, until the required sign runs out; all is dropped."""
    order = dropping_order(rows)
    assert sorted(order) == sorted(index for index, row in enumerate(rows) for _ in row)
    left, total, largest = [len(row) for row in rows], 0.0, 0.0
    for index in order:
        offered = [rows[i][count - 1] for i, count in enumerate(left) if count]
        opposite = [abs(x) for x in offered if (x < 0) == (total > 0)]
        dropped = rows[index][left[index] - 1]
        assert abs(dropped) == min(opposite or [abs(x) for x in offered]), "not the smallest of the required sign"
        if not opposite:
            return
        total, largest = total + dropped, max(largest, abs(dropped))
        left[index] -= 1
        assert abs(total) <= largest + 1e-9


@settings(deadline=None, max_examples=50)
@given(SLOPES)
def test_the_scale_of_the_loss_is_irrelevant(rows: list[list[float]]) -> None:
    assert dropping_order(rows) == dropping_order([[4 * x for x in row] for row in rows])


def test_without_slopes_matrices_lose_a_part_each_in_turn() -> None:
    assert dropping_order([[0.0] * 3, [0.0] * 2, [0.0] * 3]) == [0, 1, 2, 0, 1, 2, 0, 2]
    assert dropping_order([[1.0, math.nan], [2.0, 1.0]]) == [1, 1, 0, 0], "NaN counts as harm without limit"


def test_ranks_of_larger_ratios_lie_within_those_of_smaller_ones() -> None:
    units = tuple(Unit(f"u{i}", 900, 60, 30) for i in range(5))
    shape = ModelShape(4600, units)
    measured = {unit.name: random(30, seed=index) for index, unit in enumerate(units)}
    previous = dict.fromkeys(measured, 30)
    for ratio in (1.5, 2, 3, 5, 8):
        ranks = Budget(ratio, guard=False).allocate(shape, parse_policy("zero-sum"), measured=measured).ranks
        assert all(rank <= previous[name] for name, rank in ranks.items())
        previous = dict(ranks)


@pytest.mark.parametrize("seed", range(3))
def test_a_correction_brings_the_change_along_the_gradient_to_zero(seed: int) -> None:
    """⟨g, W - W'⟩ = 0, and W' differs from W_r along g alone; without a gradient nothing happens."""
    w, w_r, g = (random(6, 9, seed=10 * seed + i) for i in range(3))
    w_corrected = corrected(w_r, w, g).double()
    assert float((g * (w - w_corrected)).sum()) == pytest.approx(0, abs=1e-5)
    step = w_corrected - w_r
    torch.testing.assert_close(step, float((step * g).sum() / g.square().sum()) * g, atol=1e-5, rtol=1e-4)
    assert torch.equal(corrected(w_r, w, torch.zeros_like(g)), w_r.float())


def test_corrections_measure_again_and_leave_the_fit_alone(tmp_path: object) -> None:
    """Each correction changes the result, the factors on disk serve methods with and without them."""
    model, data = random_model("llama"), RandomData()
    methods = [create_method("zs-svd", {"corrections": count}) for count in (0, 1, 2)]
    assert len({str(method.fit_key()) for method in methods}) == 1
    fitted = methods[0].fit(model, data)
    fitted.save(tmp_path)  # type: ignore[arg-type]
    layers = []
    for method in methods:
        small = copy.deepcopy(model)
        assert method.requirements.searches == bool(method.model_dump()["corrections"])
        method.compress(small, Fitted.load(tmp_path), Budget(2.0), None, data)  # type: ignore[arg-type]
        layers.append(torch.cat([parameter.flatten() for parameter in small.parameters()]))
    assert len({float(layer.detach().double().sum()) for layer in layers}) == 3


def test_the_policy_serves_other_methods_and_shares_their_factors_numbers() -> None:
    """`svd-llm:policy=zero-sum` is `zs-svd` on the same examples."""
    model, data = random_model("qwen2"), RandomData()
    results = []
    for name, options in (("zs-svd", {}), ("svd-llm", {"policy": "zero-sum", "probe_samples": 256})):
        small, method = copy.deepcopy(model), create_method(name, options)
        assert method.requirements.gradients
        report = method.compress(small, method.fit(model, data), Budget(2.5), None, data)
        results.append((report.ranks, list(small.parameters())))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_a_pruning_run_has_no_slopes() -> None:
    with pytest.raises(UserError, match="take another policy, such as surgical"):
        create_method("bs", {"final_policy": "zero-sum"})


def test_corrections_need_data() -> None:
    model = random_model("llama")
    method = create_method("zs-svd", {"corrections": 1})
    assert isinstance(method, ZSSVD)
    with pytest.raises(ValueError, match="need task data"):
        method.compress(model, method.fit(model, RandomData()), Budget(2.0), None)


def test_the_probe_is_unchanged_by_slopes() -> None:
    """Slopes of a truncated model are those of the dense one, as the factors are put back."""
    model, data = random_model("llama"), RandomData()
    method = create_method("svd")
    groups, fitted = singles(method.targets(model)), method.fit(model, None)
    probe = Probe(model, groups, fitted, data, None)
    first = fitted_slopes(model, groups, fitted, probe.batches)
    with probe.truncated({groups[0].name: 1}):
        pass
    again = fitted_slopes(model, groups, fitted, probe.batches)
    assert all(torch.equal(first[name], again[name]) for name in first)
