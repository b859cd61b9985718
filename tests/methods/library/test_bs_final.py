"""Basis Selection whose last pruning follows another policy, and what it can be started from."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method, methods
from lowrank_bench.methods.calibration.statistics import example_losses
from lowrank_bench.methods.contract import count, logits
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.bs import BasisSelection
from lowrank_bench.methods.library.bs.final import BasisProbe
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.library.svd import SVD
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.requirements import Requirements
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import get_linear, replace_module

FINAL = (
    "surgical(rounds=2)",
    "greedy",
    "greedy(normalise=loss)",
    "sensitivity(step=0.3)",
    "loss",
    "lagrangian",
    "uniform",
)


def method(**options: Any) -> BasisSelection:
    compressor = create_method("bs", {"prunings": 4, "additional_dimension": 2, "final_samples": 4, **options})
    assert isinstance(compressor, BasisSelection)
    return compressor


def compress(bs: BasisSelection, ratio: float = 2.5, trained: bool = True) -> tuple[Any, Any]:
    model = random_model("llama")
    fitted = bs.fit(model, RandomData())
    return model, bs.compress(model, fitted, Budget(ratio, bs.guard), PlainTrainer() if trained else None, RandomData())


@pytest.mark.parametrize("final", FINAL)
@pytest.mark.parametrize("guard", [True, False])
def test_every_final_policy_meets_the_budget(final: str, guard: bool) -> None:
    bs = method(final_policy=final, guard=guard)
    model, report = compress(bs)
    allowed = count(random_model("llama")) / 2.5
    assert 0 <= allowed - count(model) < max(unit.cost for unit in bs.shape(random_model("llama")).units)
    assert report.parameters == count(model)
    assert torch.isfinite(logits(model)).all()
    assert 0 <= report.details["final_level"] <= 1
    assert bs.requirements.searches == any(name in final for name in ("surgical", "normalise=loss", "sensitivity"))


def test_the_final_policy_decides_the_ranks() -> None:
    """One pruning of untrained bases under a policy is the plain method under that policy."""
    for final in ("greedy", "uniform", "modules(q_proj=0.3)", "surgical"):
        _, report = compress(
            method(final_policy=final, prunings=1, additional_dimension=0, final_samples=64), trained=False
        )
        plain, model = create_method("svd", {"policy": final}), random_model("llama")
        expected = plain.compress(model, plain.fit(model, None), Budget(2.5), None, RandomData())
        assert report.ranks == expected.ranks, final
    ranks = [compress(method(final_policy=final))[1].ranks for final in ("", "greedy", "surgical(rounds=3)")]
    assert ranks[0] != ranks[1] != ranks[2] != ranks[0]


def test_a_final_policy_is_left_something_to_decide() -> None:
    """The schedule before it stops earlier, by the share that is asked for, and nothing is pruned after it."""
    sizes: dict[float, list[int]] = {}

    class Watching(PlainTrainer):
        def train(
            self, model: Any, steps: int, lr_scale: float = 1.0, on_gradients: Any = None, state: Any = None
        ) -> Any:
            def look(step: int, tokens: int) -> None:
                on_gradients(step, tokens)
                layers = [module for module in model.modules() if isinstance(module, BasisLinear)]
                seen.append(sum(len(layer.kept) for layer in layers))

            return super().train(model, steps, lr_scale, look, state)

    for share in (0.0, 0.25, 0.6):
        seen: list[int] = []
        bs, model = (
            method(final_policy="greedy", final_share=share, prunings=5, additional_dimension=0),
            random_model("llama"),
        )
        bs.compress(model, bs.fit(model, None), Budget(3.0), Watching(20), RandomData())
        sizes[share] = seen
    before_last = {share: seen[-3] for share, seen in sizes.items()}
    assert before_last[0.0] < before_last[0.25] < before_last[0.6]
    assert all(a >= b for seen in sizes.values() for a, b in pairwise(seen))


def test_one_run_with_a_final_policy_serves_several_ratios() -> None:
    bs, model = method(final_policy="surgical(rounds=2)", prunings=8, trajectory=True), random_model("llama")
    before, given = count(model), []

    def emit(budget: Budget, merged: Any, report: Any) -> None:
        given.append((budget.ratio, count(merged), report.details["final_level"]))

    fitted = bs.fit(model, None)
    bs.compress_path(model, fitted, [Budget(r) for r in (3.0, 1.7, 2.2)], PlainTrainer(16), emit, RandomData())
    assert [ratio for ratio, _, _ in given] == [1.7, 2.2, 3.0]
    assert all(0 <= before / ratio - size < 128 for ratio, size, _ in given)


def test_the_probe_sees_the_pruned_model_and_puts_it_back() -> None:
    model, name = random_model("llama"), "model.layers.1.mlp.up_proj"
    weight = get_linear(model, name).weight.detach().clone()
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    layer = BasisLinear(Factors(u * s.sqrt(), s.sqrt()[:, None] * vt, s), None, 0, "zero", 0, torch.float32)
    replace_module(model, name, layer)
    data = RandomData(4)

    def mask_at(_: str, rank: int) -> Tensor:
        return torch.arange(len(layer.kept)) < rank

    probe = BasisProbe(model, {name: layer}, mask_at, data, 64, "loss")
    whole = probe.loss({})
    cut = probe.loss({name: 3})
    assert len(layer.kept) == len(s)
    assert probe.loss({}) == whole
    dense = random_model("llama")
    with torch.no_grad():
        get_linear(dense, name).weight.copy_(u[:, :3] * s[:3] @ vt[:3])
        batch = next(data.batches(None, 4))
        expected = example_losses(dense(input_ids=batch["input_ids"]).logits, batch["labels"]).mean()
    assert cut == pytest.approx(float(expected), rel=1e-4)
    assert BasisProbe(model, {name: layer}, mask_at, data, 64, "accuracy").loss({}) <= 1


def test_what_cannot_be_combined_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match="unknown policy 'surgica'; did you mean 'surgical'"):
        method(final_policy="surgica")
    with pytest.raises(UserError, match="there are down_proj, gate_proj, k_proj"):
        method(final_policy="modules(qq=2)").shape(random_model("llama"))
    bs, model = method(final_policy="surgical"), random_model("llama")
    fitted = bs.fit(model, None)
    with pytest.raises(UserError, match="asks for the model's loss; add --task"):
        bs.compress(model, fitted, Budget(2.0), None)


def test_starts_that_share_or_add_a_bias_are_refused() -> None:
    class Shared(SVD):
        requires = Requirements(shares="all")

    class Affine(SVD):
        requires = Requirements(affine=True)

    for cls, name in ((Shared, "test-shared-start"), (Affine, "test-affine-start")):
        methods.register(name)(cls)
        try:
            with pytest.raises(UserError, match="one matrix at a time and adds no bias"):
                method(start=name)
        finally:
            del methods._classes[name]
    with pytest.raises(UserError, match="one matrix at a time and adds no bias"):
        method(start="bs")


def test_a_start_whose_own_policy_measures_does_not_measure_here() -> None:
    """Its policy would choose no rank; so the start's fit needs no data for it, and is the one without it."""

    class Measuring(SVD):
        policy: str = "sensitivity"

    methods.register("test-measuring-start")(Measuring)
    try:
        assert create_method("test-measuring-start").requirements.data_in_fit
        bs = method(start="test-measuring-start")
        assert not bs.requirements.data_in_fit
        model = random_model("llama")
        assert not bs.fit(model, None).evidence()
        assert bs.compress(model, bs.fit(model, None), Budget(2.0), None).ratio >= 2
    finally:
        del methods._classes["test-measuring-start"]
