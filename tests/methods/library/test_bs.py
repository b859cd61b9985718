"""Basis Selection on whole models: what trains, what stays, and that every budget is met exactly."""

import copy
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_bench.methods.base import CompressionReport, TrainingLog, create_method
from lowrank_bench.methods.contract import count, logits
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.library.bs import BasisSelection
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies.base import policies
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear


def method(**options: Any) -> BasisSelection:
    compressor = create_method("bs", {"prunings": 4, "additional_dimension": 2, **options})
    assert isinstance(compressor, BasisSelection)
    return compressor


def compress(bs: BasisSelection, ratio: float = 2.0, trainer: Any = None, name: str = "llama") -> Any:
    model = random_model(name)
    fitted = bs.fit(model, RandomData())
    return model, bs.compress(model, fitted, Budget(ratio, bs.guard), trainer)


def basis_layers(model: nn.Module) -> dict[str, BasisLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, BasisLinear)}


class Watching(PlainTrainer):
    """Calls ``look`` after each step's gradients are there, before and after the pruning of that step."""

    def __init__(self, look: Callable[[nn.Module, bool], None], **settings: Any) -> None:
        super().__init__(**settings)
        self.look = look

    def train(
        self, model: nn.Module, steps: int, lr_scale: float = 1.0, on_gradients: Any = None, state: Any = None
    ) -> TrainingLog:
        def both(step: int, tokens: int) -> None:
            self.look(model, False)
            on_gradients(step, tokens)
            self.look(model, True)

        return super().train(model, steps, lr_scale, both, state)


@pytest.mark.parametrize("new_vectors", ["zero", "top"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "opt", "gpt-neox", "gemma"])
def test_training_starts_from_the_dense_model(new_vectors: str, name: str) -> None:
    seen: list[float] = []

    def look(model: nn.Module, after: bool) -> None:
        if not seen and not after:
            assert basis_layers(model)
            seen.append(float((logits(model.eval()) - expected).abs().max() / expected.abs().max()))
            model.train()

    expected = logits(random_model(name))
    compress(method(new_vectors=new_vectors), trainer=Watching(look), name=name)
    assert seen[0] < 1e-4


def test_without_other_parameters_only_bases_train() -> None:
    """Singular values and new vectors train; bases, embeddings, norms and biases are the same bits afterwards."""
    bases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    trained: set[str] = set()
    pruned_with_gradient = 0

    def look(model: nn.Module, after: bool) -> None:
        nonlocal pruned_with_gradient
        trained.update(name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if p.requires_grad)
        for name, layer in basis_layers(model).items():
            left, right = bases.setdefault(name, (layer.left.clone(), layer.right.clone()))
            assert torch.equal(layer.left, left[:, layer.kept])
            assert torch.equal(layer.right, right[layer.kept])
            assert not layer.left.requires_grad
            gone = torch.ones(len(layer.weight_root), dtype=torch.bool)
            gone[layer.kept] = False
            if not after and layer.weight_root.grad is not None and gone.any():
                pruned_with_gradient += int(layer.weight_root.grad[gone].count_nonzero())

    model, _ = compress(method(train_others=False), trainer=Watching(look), name="qwen2")
    assert trained == {"weight_root", "extra_left", "extra_right"}
    assert pruned_with_gradient == 0
    start = dict(random_model("qwen2").named_parameters())
    for name, parameter in model.named_parameters():
        if not name.endswith(("lr_a", "lr_b")) and name in start:
            assert torch.equal(parameter, start[name]), name
        assert parameter.requires_grad


def test_by_default_the_other_parameters_train_too() -> None:
    model, _ = compress(method(), trainer=PlainTrainer(), name="qwen2")
    start = dict(random_model("qwen2").named_parameters())
    names = ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"]
    assert all(not torch.equal(model.get_parameter(name), start[name]) for name in names)


def test_masks_never_reopen_and_pruning_is_gradual() -> None:
    history: list[dict[str, set[int]]] = []

    def look(model: nn.Module, after: bool) -> None:
        if after:
            history.append({name: set(layer.kept.tolist()) for name, layer in basis_layers(model).items()})

    _, report = compress(method(prunings=6), 3.0, Watching(look, total_steps=20))
    assert report.steps == len(history) == 10
    assert all(b[name] <= a[name] for a, b in pairwise(history) for name in a)
    sizes = [sum(len(bases) for bases in step.values()) for step in history]
    keep_steps = round(10 / 3)
    assert len(set(sizes[:keep_steps])) == 1
    assert len(set(sizes)) >= 5
    extra = report.details["additional_dimension"]
    assert all(rank <= len(history[-1][name]) + extra[name] for name, rank in report.ranks.items())


@pytest.mark.parametrize("prunings", [1, 3, 100])
def test_untrained_it_is_the_truncated_svd_at_the_energy_ranks(prunings: int) -> None:
    """Without training and new vectors each matrix is its truncated SVD; one pruning gives the one-shot ranks."""
    bs = method(prunings=prunings, additional_dimension=0)
    model, report = compress(bs, 2.5)
    dense = random_model("llama")
    for name, rank in report.ranks.items():
        u, s, vt = torch.linalg.svd(get_linear(dense, name).weight.detach().double(), full_matrices=False)
        layer = model.get_submodule(name)
        assert isinstance(layer, LowRankLinear)
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        torch.testing.assert_close(layer.dense_weight().double(), best, rtol=1e-3, atol=1e-4 * float(s[0]))
    if prunings == 1:
        fitted, shape = bs.fit(dense, RandomData()), bs.shape(dense)
        spectra = {unit.name: fitted.spectrum(unit.name) for unit in shape.units}
        assert report.ranks == Budget(2.5).allocate(shape, policies.get("energy")(), spectra).ranks


def test_gradual_pruning_arrives_near_the_one_shot_ranks() -> None:
    one_shot, gradual = (compress(method(prunings=p, additional_dimension=0), 3.0)[1].ranks for p in (1, 50))
    assert one_shot.keys() == gradual.keys()
    assert all(abs(one_shot[name] - gradual[name]) <= 2 for name in one_shot), (one_shot, gradual)


@pytest.mark.parametrize(
    ("criterion", "schedule", "scope", "new_vectors"),
    product(["s", "s2", "taylor"], ["exponential", "linear"], ["layer", "global"], ["zero", "top"]),
)
def test_every_option_meets_the_budget(criterion: str, schedule: str, scope: str, new_vectors: str) -> None:
    bs = method(criterion=criterion, schedule=schedule, scope=scope, new_vectors=new_vectors, split="even")
    model, report = compress(bs, 2.2, PlainTrainer(6))
    allowed = count(random_model("llama")) / 2.2
    assert 0 <= allowed - count(model) < max(unit.cost for unit in bs.shape(random_model("llama")).units)
    assert report.parameters == count(model)
    assert torch.isfinite(logits(model)).all()
    assert 0 < report.details["kept_share"] < 1


@pytest.mark.parametrize(
    ("scope", "new_vectors", "prunings", "trajectory"),
    [("layer", "top", 4, False), ("global", "zero", 12, False), ("layer", "zero", 12, True)],
)
def test_ranks_in_multiples(scope: str, new_vectors: str, prunings: int, trajectory: bool) -> None:
    """Scheduled prunings leave whole multiples too, so that the last one finds some in every matrix."""
    bs = method(scope=scope, new_vectors=new_vectors, prunings=prunings, trajectory=trajectory)
    model = random_model("llama")
    budgets = [Budget(ratio, bs.guard, 4) for ratio in ((1.8, 2.6) if trajectory else (2.6,))]
    results: dict[float, Any] = {}
    bs.compress_path(
        model,
        bs.fit(model, RandomData()),
        budgets,
        PlainTrainer(12),
        lambda budget, merged, report: results.update({budget.ratio: (count(merged), report)}),
    )
    assert len(results) == len(budgets)
    dense, largest = count(random_model("llama")), max(unit.cost for unit in bs.shape(random_model("llama")).units)
    for ratio, (parameters, report) in results.items():
        assert report.ranks
        assert all(rank % 4 == 0 for rank in report.ranks.values()), report.ranks
        assert 0 <= dense / ratio - parameters < 4 * largest


def test_the_split_does_not_change_the_function() -> None:
    even, first = (compress(method(split=split), trainer=PlainTrainer())[0] for split in ("even", "first"))
    torch.testing.assert_close(logits(even), logits(first), rtol=1e-3, atol=1e-3)
    a, b = even.model.layers[0].mlp.up_proj, first.model.layers[0].mlp.up_proj
    torch.testing.assert_close(a.lr_a.norm(), a.lr_b.norm())
    torch.testing.assert_close(b.lr_b.T @ b.lr_b, torch.eye(b.rank), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guard", [True, False])
def test_guard(guard: bool) -> None:
    model, report = compress(method(guard=guard, additional_dimension=0), 1.1)
    assert report.ratio >= 1.1
    assert bool(report.dense) == guard
    dense = random_model("llama")
    for name in report.dense:
        weight, expected = get_linear(model, name).weight, get_linear(dense, name).weight
        torch.testing.assert_close(weight, expected, rtol=1e-4, atol=1e-5)


def test_bases_of_another_method() -> None:
    bs = method(start="fwsvd")
    model, report = compress(bs, trainer=PlainTrainer())
    assert bs.fit_key() == create_method("fwsvd").fit_key()
    assert method().fit_key() == create_method("svd").fit_key()
    assert report.ratio >= 2.0
    assert torch.isfinite(logits(model)).all()


def test_one_run_serves_several_ratios() -> None:
    """Each ratio is met exactly, from low to high, and what was handed out is not trained any further."""
    ratios = [3.0, 1.5, 2.0]
    bs, model = method(prunings=12, trajectory=True), random_model("qwen2")
    step = max(unit.cost for unit in bs.shape(model).units)
    before = count(model)
    given: list[tuple[float, Any, CompressionReport, dict[str, torch.Tensor]]] = []

    def emit(budget: Budget, merged: nn.Module, report: CompressionReport) -> None:
        given.append((budget.ratio, merged, report, copy.deepcopy(merged.state_dict())))

    fitted = bs.fit(model, RandomData())
    bs.compress_path(model, fitted, [Budget(ratio) for ratio in ratios], PlainTrainer(24), emit)
    assert [ratio for ratio, *_ in given] == sorted(ratios)
    for ratio, merged, report, state in given:
        assert 0 <= before / ratio - count(merged) < step
        assert report.parameters == count(merged)
        assert not basis_layers(merged)
        assert all(torch.equal(value, state[name]) for name, value in merged.state_dict().items())
        assert all(p.requires_grad for p in merged.parameters())
        assert torch.isfinite(logits(merged)).all()
    steps = [report.steps for _, _, report, _ in given]
    assert steps == sorted(steps)
    assert steps[0] < steps[-1] == 12
    shares = [report.details["kept_share"] for _, _, report, _ in given]
    assert shares == sorted(shares, reverse=True)


def test_steps_and_learning_rates() -> None:
    trainer = PlainTrainer(12)
    assert method().pruning_run_steps(trainer) == 6
    assert method(post_epochs=0).pruning_run_steps(trainer) == 12
    trainer.extra_steps = 5
    assert method().pruning_run_steps(trainer) == 5
    _, report = compress(method(), trainer=trainer)
    assert report.steps == 5
    assert report.recover_lr_scale == pytest.approx(report.details["kept_share"] ** -0.5)
    assert compress(method(lr_scaling="none"))[1].recover_lr_scale == 1.0


def test_narrow_matrices_get_fewer_new_vectors() -> None:
    bs = method(additional_dimension=32, additional_share=0.5)
    _, report = compress(bs, 3.0)
    assert all(0 <= extra <= 8 for extra in report.details["additional_dimension"].values())
    assert max(report.details["additional_dimension"].values()) >= 2
