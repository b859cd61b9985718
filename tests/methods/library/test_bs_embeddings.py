"""Basis Selection of the token embedding: lookup and tied head by one set of bases."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import count, logits
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.estimates import trained_skeleton
from lowrank_bench.methods.library.bs import BasisSelection
from lowrank_bench.methods.library.bs.embedding import BasisEmbedding
from lowrank_bench.methods.library.bs.run import PruningRun
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.embedding import LowRankEmbedding, TiedHead
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import model_size, tied_modules


def method(**options: Any) -> BasisSelection:
    selection = create_method("bs", {"prunings": 4, "additional_dimension": 2, "embeddings": True, **options})
    assert isinstance(selection, BasisSelection)
    return selection


def begin(model: nn.Module, bs: BasisSelection, ratio: float = 2.0) -> PruningRun:
    fitted = bs.fit(model, RandomData())
    return PruningRun(bs, model, fitted, [Budget(ratio, bs.guard)], lambda index, merged: None, RandomData())


def rows_of(model: Any) -> BasisEmbedding:
    layer = model.get_input_embeddings()
    assert isinstance(layer, BasisEmbedding)
    return layer


@pytest.mark.parametrize("options", [{}, {"new_vectors": "top", "additional_share": 0.5}, {"start": "fwsvd"}], ids=str)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_run_starts_from_the_dense_model(architecture: str, tied: bool, options: dict[str, Any]) -> None:
    model = random_model(architecture, tied)
    before, parameters = logits(model), count(model)
    run = begin(model, method(**options))
    assert (logits(model) - before).abs().max() <= 2e-4 * before.abs().max()
    assert isinstance(model.get_output_embeddings(), TiedHead) == tied
    rows_of(model)
    run.prune()
    merged = run.merged(model)
    assert count(merged) <= parameters


def test_lookup_and_head_train_the_same_singular_values_and_leave_the_bases() -> None:
    model = random_model("llama", tied=True)
    begin(model, method(new_vectors="top", additional_share=0.5))
    layer = rows_of(model)
    left, right = layer.left.clone(), layer.right.clone()
    ids = torch.tensor([[4, 5, 4, 9]])
    trained = [layer.weight_root, layer.extra_left, layer.extra_right]

    def gradients(lookup: bool, head: bool) -> list[torch.Tensor]:
        """Of a loss of the logits, through the lookup, the head or both."""
        rows, x = layer(ids), torch.linspace(-1, 1, 4 * 32).reshape(1, 4, 32)
        loss = (rows**2).sum() * lookup + (layer.project(x) ** 3).sum() * head
        return list(torch.autograd.grad(loss, trained))

    for both, first, second in zip(gradients(True, True), gradients(True, False), gradients(False, True), strict=True):
        torch.testing.assert_close(both, first + second)
        assert bool(first.any())
        assert bool(second.any())
    weight = layer.dense_weight()
    torch.testing.assert_close(layer(ids), weight[ids], rtol=1e-4, atol=1e-5)
    x = torch.linspace(-1, 1, 64).reshape(2, 32)
    torch.testing.assert_close(layer.project(x), x @ weight.T, rtol=1e-4, atol=1e-5)
    PlainTrainer().train(model, 3)
    assert torch.equal(layer.left, left)
    assert torch.equal(layer.right, right)
    assert not torch.equal(layer.dense_weight(), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_in_the_dtype_of_the_parameters_under_autocast_too(dtype: torch.dtype) -> None:
    """As those of a dense embedding: the residual stream starts with them."""
    model = random_model("llama", True, dtype)
    begin(model, method(bases_dtype="bfloat16"))
    ids = torch.tensor([[1, 2]])
    plain = rows_of(model)(ids)
    with torch.autocast("cpu", torch.bfloat16):
        rows = rows_of(model)(ids)
    assert (plain.dtype, rows.dtype) == (dtype, dtype)
    torch.testing.assert_close(rows, plain, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "opt"])
def test_an_embedding_that_stays_dense_is_tied_as_before(architecture: str, tmp_path: Path) -> None:
    """At a ratio close to 1 its factors would not be smaller."""
    model = random_model(architecture, tied=True)
    keys, ties, kind = set(model.state_dict()), tied_modules(model), type(model.get_input_embeddings())
    bs = method(guard=True, additional_dimension=0)
    report = bs.compress(model, bs.fit(model, RandomData()), Budget(1.001, True), PlainTrainer())
    name = next(matrix.name for matrix in bs.targets(random_model(architecture, tied=True)) if matrix.embedding)
    assert name in report.dense
    assert type(model.get_input_embeddings()) is kind
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied_modules(model) == ties
    assert keys & set(model.state_dict()) == keys - {f"{gone}.weight" for gone in report.ranks}
    save_checkpoint(model, None, tmp_path)
    again = load_model(tmp_path)
    torch.testing.assert_close(logits(again), logits(model))
    assert model_size(again).parameters == report.parameters == count(model)


def test_one_run_hands_out_every_ratio_of_a_trajectory() -> None:
    model, bs = random_model("gemma3", tied=True), method(trajectory=True)
    sizes: dict[float, int] = {}

    def emit(budget: Budget, small: Any, report: Any) -> None:
        embedding, head = small.get_input_embeddings(), small.get_output_embeddings()
        assert isinstance(embedding, LowRankEmbedding)
        assert head.embedding is embedding, "a snapshot's head must be its own embedding's"
        assert bool(torch.isfinite(logits(small)).all())
        sizes[budget.ratio] = count(small)

    before = count(model)
    bs.compress_path(model, bs.fit(model, RandomData()), [Budget(1.5), Budget(3.0)], PlainTrainer(), emit)
    assert list(sizes) == [1.5, 3.0]
    assert all(size <= before / ratio for ratio, size in sizes.items())


def test_a_ratio_out_of_reach_without_the_embedding_names_the_option() -> None:
    model = random_model("llama", tied=True)
    with pytest.raises(UserError, match=r"out of reach.*or factorise the token embedding too \(bs:embeddings=true\)"):
        create_method("bs").shape(model, 10.0)
    assert method().shape(model, 10.0).units


def test_options_that_do_not_fit_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match=r"option embeddings=True is not usable: start=asvd has no rule.* svd or fwsvd"):
        create_method("bs", {"embeddings": True, "start": "asvd"})
    assert not create_method("bs", {"embeddings": True}).requirements.trains_sharded
    assert "embeddings" not in create_method("bs").model_dump()
    assert "embeddings" not in create_method("bs").fit_key()
    with_rows = create_method("bs", {"embeddings": True}).fit_key()
    assert with_rows == create_method("svd", {"embeddings": True}).fit_key()


@pytest.mark.parametrize("tied", [True, False])
def test_the_trained_model_is_known_before_loading(tied: bool) -> None:
    model, bs = random_model("gemma3", tied), method(additional_dimension=0)
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    expected = trained_skeleton(bs, skeleton)
    assert all(parameter.is_meta for parameter in skeleton.parameters()), "the skeleton is left as it was"
    assert type(skeleton.get_input_embeddings()) is type(model.get_input_embeddings())
    assert skeleton.get_input_embeddings().weight is not None
    begin(model, bs)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if "extra" not in name}
    assert {name: p.shape for name, p in expected.named_parameters() if "extra" not in name} == shapes
