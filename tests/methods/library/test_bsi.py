"""The second-order criterion against losses whose Hessian is known, and the probes' honesty about their cost."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import count
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.bs.curvature import Curvature
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model


class Quadratic:
    """L(s) = ½ sᵀ H s - bᵀ s over the singular values of two layers, H positive definite and far from diagonal."""

    def __init__(self, coupled: bool) -> None:
        generator = torch.Generator().manual_seed(3)
        self.layers = {}
        for name, size in (("a", 6), ("b", 4)):
            s = torch.rand(size, generator=generator).sort(descending=True).values + 0.2
            eye = torch.eye(size)
            factors = Factors(eye * s.sqrt(), s.sqrt()[:, None] * eye, s)
            self.layers[name] = BasisLinear(factors, None, 0, "zero", 0, torch.float32)
        root = torch.randn(10, 10, generator=generator)
        self.h = root @ root.T / 10 if coupled else torch.diag(torch.rand(10, generator=generator))
        self.b = torch.randn(10, generator=generator)

    def s(self) -> Tensor:
        return torch.cat([layer.weight_root**2 for layer in self.layers.values()])

    def loss(self) -> Tensor:
        s = self.s()
        return s @ self.h @ s / 2 - self.b @ s

    def true_increases(self) -> Tensor:
        """L with s_i = 0 minus L, by evaluating both."""
        s, increases = self.s().detach(), []
        base = s @ self.h @ s / 2 - self.b @ s
        for index in range(len(s)):
            without = s.clone()
            without[index] = 0
            increases.append(without @ self.h @ without / 2 - self.b @ without - base)
        return torch.stack(increases)


def test_one_probe_is_exact_for_a_diagonal_hessian() -> None:
    toy = Quadratic(coupled=False)
    curvature = Curvature(toy.layers, seed=0)
    curvature.observe(toy.loss)
    increases = torch.cat([curvature.increase(name) for name in toy.layers])
    torch.testing.assert_close(increases, toy.true_increases(), rtol=2e-3, atol=2e-4)


def test_the_mean_of_many_probes_is_the_diagonal_of_a_coupled_hessian() -> None:
    """Also across matrices, which are perturbed together; a single probe is far off."""
    toy = Quadratic(coupled=True)
    curvature, once = Curvature(toy.layers, seed=1, memory=1.0), Curvature(toy.layers, seed=1)
    for _ in range(3000):
        curvature.observe(toy.loss)
    once.observe(toy.loss)
    expected = toy.true_increases()
    many, single = (torch.cat([c.increase(name) for name in toy.layers]) for c in (curvature, once))
    assert (many - expected).abs().max() < 0.05 * expected.abs().max()
    assert (single - expected).abs().max() > 0.1 * expected.abs().max()
    bend = torch.cat([curvature.bend[name] / curvature.weight for name in toy.layers])
    torch.testing.assert_close(bend, toy.h.diag() * toy.s().detach() ** 2, rtol=0.2, atol=0.03)


def test_a_probe_leaves_parameters_and_gradients_alone() -> None:
    toy = Quadratic(coupled=True)
    toy.loss().backward()
    roots = [layer.weight_root for layer in toy.layers.values()]
    before = [(root.detach().clone(), root.grad.clone() if root.grad is not None else None) for root in roots]
    Curvature(toy.layers, seed=0).observe(toy.loss)
    for root, (value, gradient) in zip(roots, before, strict=True):
        assert torch.equal(root, value)
        assert gradient is not None
        assert root.grad is not None
        assert torch.equal(root.grad, gradient)

    def failing() -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        Curvature(toy.layers, seed=0).observe(failing)
    assert all(torch.equal(root, value) for root, (value, _) in zip(roots, before, strict=True))


def test_scores_are_in_the_order_of_the_increase_and_never_negative() -> None:
    toy = Quadratic(coupled=True)
    curvature = Curvature(toy.layers, seed=1)
    curvature.observe(toy.loss)
    layer = toy.layers["a"]
    layer.prune(torch.tensor([True, False, True, True, True, True]))
    increase, scores = curvature.increase("a")[layer.kept], curvature.importance("a")
    assert scores.shape == (5,)
    assert (scores > 0).all()
    positive = increase > 0
    assert positive.any()
    assert (scores[positive] >= increase[positive]).all()
    assert scores[~positive].numel() == 0 or scores[~positive].max() < scores[positive].max()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("trained", [True, False])
def test_it_prunes_by_the_criterion_and_counts_its_passes(scope: str, trained: bool) -> None:
    bsi = create_method("bsi", {"prunings": 4, "additional_dimension": 2, "hessian_probes": 3, "scope": scope})
    assert bsi.requirements.searches
    model, data = random_model("llama"), RandomData(20)
    before = count(model)
    fitted = bsi.fit(model, None)
    report = bsi.compress(model, fitted, Budget(2.5), PlainTrainer() if trained else None, data)
    assert 0 <= before / 2.5 - count(model) < 2 * 128
    probes = report.details["hessian_passes"] // 2
    assert probes % 3 == 0
    assert 2 * 3 <= probes <= 5 * 3
    lengths = [int(batch["attention_mask"].sum()) for batch in data.batches(64, 8)]
    assert report.details["hessian_tokens"] == sum(2 * lengths[probe % len(lengths)] for probe in range(probes))
    assert report.steps == (4 if trained else 0)


def test_it_keeps_other_bases_than_the_largest_singular_values() -> None:
    """In a model where some inputs of a matrix are always zero, the large singular values of those inputs go."""

    def compressed_by(criterion: str) -> Any:
        model = random_model("llama")
        layer = model.model.layers[0].mlp.down_proj
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight[:4] = 0  # these hidden features are always zero
            q = torch.linalg.qr(torch.randn(32, 4, generator=torch.Generator().manual_seed(0))).Q
            layer.weight -= q @ (q.T @ layer.weight)
            layer.weight[:, :4] = q * layer.weight.norm(2)  # so four of the largest bases do nothing
        method = create_method(
            "bs", {"criterion": criterion, "prunings": 1, "additional_dimension": 0, "hessian_probes": 8}
        )
        return method.compress(model, method.fit(model, None), Budget(2.5), None, RandomData()), layer, model

    energy = {}
    for criterion in ("s", "hessian"):
        _, dense, model = compressed_by(criterion)
        small = model.model.layers[0].mlp.down_proj
        energy[criterion] = float((small.dense_weight()[:, :4].norm() / dense.weight[:, :4].norm()).detach())
    assert energy["hessian"] < 0.2
    assert energy["s"] > 0.7


def test_without_data_it_says_what_to_add() -> None:
    bsi, model = create_method("bsi", {"prunings": 1}), random_model("llama")
    with pytest.raises(UserError, match="add --task"):
        bsi.compress(model, bsi.fit(model, None), Budget(2.0), None)
    assert not create_method("bs").requirements.searches
    assert isinstance(model, nn.Module)
