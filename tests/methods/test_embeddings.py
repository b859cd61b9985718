"""Factorised embeddings and tied heads: the formula, counts, ties, saving and loading, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.frequencies import token_counts, token_weights
from lowrank_bench.methods.linalg.rows import factor_rows
from lowrank_bench.methods.linalg.whitening import root, whiten
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.embedding import LowRankEmbedding, TiedHead
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.loading import load_model, weights_size
from lowrank_bench.models.matrices import low_rank_layers, model_size, tied_modules
from lowrank_bench.models.streamed import open_streamed


class FixedData:
    """Task data of these token ids, padded on the right."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.texts = texts

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, torch.Tensor]]:
        texts = self.texts[:samples]
        for start in range(0, len(texts), batch_size):
            part = texts[start : start + batch_size]
            width = max(map(len, part))
            ids = torch.tensor([text + [0] * (width - len(text)) for text in part])
            mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in part])
            yield {"input_ids": ids, "attention_mask": mask, "labels": ids.where(mask.bool(), torch.tensor(-100))}


IDS = torch.tensor([[1, 5, 9, 20, 33, 44, 7, 3]])


def random_tensor(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(weight: torch.Tensor, product: torch.Tensor, rows: torch.Tensor, lower: torch.Tensor) -> float:
    return float((rows[:, None] * ((weight - product) @ lower) ** 2).sum())


def test_equal_rows_without_inputs_are_the_svd() -> None:
    weight = random_tensor(0, 50, 8)
    factors = factor_rows(weight.float())
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    assert torch.allclose(factors.spectrum.double(), s, rtol=1e-5)
    for rank in (1, 3, 8):
        a, b = factors.truncate(rank)
        assert torch.allclose((b @ a).double(), (u * s)[:, :rank] @ vt[:rank], atol=1e-5)


@pytest.mark.parametrize(("vocabulary", "width"), [(5, 8), (96, 128), (8, 8)])
def test_a_vocabulary_smaller_than_the_width_has_no_more_components(vocabulary: int, width: int) -> None:
    weight = torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(0))
    factors = factor_rows(weight)
    assert len(factors.spectrum) == min(vocabulary, width)
    torch.testing.assert_close(factors.left @ factors.right, weight, atol=1e-4, rtol=0)


def test_equal_rows_with_inputs_are_the_whitened_factors() -> None:
    weight, x = random_tensor(1, 50, 8), random_tensor(2, 8, 30)
    inputs = root(x @ x.T)
    ours, whitened = factor_rows(weight.float(), None, inputs), whiten(weight.float(), inputs)
    assert torch.allclose(ours.spectrum, whitened.spectrum, rtol=1e-4)
    for rank in (2, 5):
        (a, b), (c, d) = ours.truncate(rank), whitened.truncate(rank)
        assert torch.allclose(b @ a, d @ c, atol=1e-4)


def test_the_loss_is_the_dropped_spectrum_and_alternating_least_squares_finds_no_less() -> None:
    """The independent source is a solver that knows only the objective."""
    weight, x, rows = random_tensor(3, 40, 6), random_tensor(4, 6, 20), random_tensor(5, 40).abs()
    rows[7:12] = 0
    inputs = root(x @ x.T)
    factors = factor_rows(weight.float(), rows, inputs)
    assert bool(torch.isfinite(factors.left).all())
    for rank in (1, 3, 5):
        a, b = (factor.double() for factor in factors.truncate(rank))
        ours = loss(weight, b @ a, rows, inputs.lower)
        assert ours == pytest.approx(float((factors.spectrum[rank:].double() ** 2).sum()), rel=1e-4)
        first = random_tensor(6, rank, 6)
        for _ in range(300):
            seen = first @ inputs.lower
            second = (weight @ inputs.lower) @ torch.linalg.pinv(seen)
            weighted = second * rows.sqrt()[:, None]
            first = torch.linalg.pinv(weighted) @ (weight * rows.sqrt()[:, None])
        assert ours <= loss(weight, second @ first, rows, inputs.lower) * (1 + 1e-4)


def test_frequent_tokens_lose_less_than_with_equal_rows() -> None:
    weight, rows = random_tensor(7, 60, 12), torch.ones(60, dtype=torch.float64)
    rows[:6] = 50
    errors = []
    for weights in (None, rows):
        a, b = factor_rows(weight.float(), weights).truncate(5)
        errors.append(float(((weight - b @ a)[:6] ** 2).sum()))
    assert errors[1] < errors[0]


def test_token_weights_count_what_is_read_and_nothing_is_zero() -> None:
    counts = token_counts(FixedData([[3, 3, 4], [3, 5]]), 8, None, 2)
    assert counts.tolist() == [0, 0, 0, 3, 1, 1, 0, 0]
    weights = token_weights(counts)
    assert weights.mean() == pytest.approx(1)
    assert weights[3] == pytest.approx(4 * weights[0])
    assert bool((weights > 0).all())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_architecture_reaches_the_ratio_and_loads_again(architecture: str, tied: bool, tmp_path: Path) -> None:
    model = random_model(architecture, tied=tied)
    dense, method = copy.deepcopy(model), create_method("svd", {"embeddings": True})
    fitted = method.fit(model, None)
    report = method.compress(model, fitted, Budget(2.0, method.guard))
    layers = [layer for layer in low_rank_layers(model).values() if isinstance(layer, LowRankEmbedding)]
    assert len(layers) == 1
    assert isinstance(model.get_output_embeddings(), TiedHead) == tied
    assert report.parameters == model_size(model).parameters
    assert report.ratio >= 2.0
    save_checkpoint(model, None, tmp_path / "small")
    assert weights_size(tmp_path / "small").parameters == report.parameters
    again = load_model(tmp_path / "small")
    with torch.no_grad():
        logits = model(IDS).logits
        assert torch.equal(again(IDS).logits, logits)
        export_dense(tmp_path / "small", tmp_path / "dense")
        exported = load_model(tmp_path / "dense")
        assert torch.allclose(exported(IDS).logits, logits, atol=1e-4)
    assert bool(tied_modules(exported)) == tied
    assert type(exported.get_input_embeddings()) is type(dense.get_input_embeddings())


def test_full_rank_changes_nothing() -> None:
    model = random_model("llama", tied=True)
    with torch.no_grad():
        before = model(IDS).logits
        method = create_method("svd", {"embeddings": True, "guard": False})
        layer = method.fit(model, None).factors("model.embed_tokens")
        a, b = layer.truncate(len(layer.spectrum))
        assert torch.allclose(b @ a, model.get_input_embeddings().weight, atol=1e-5)
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_streamed_model_gives_the_same(tied: bool, tmp_path: Path) -> None:
    model = random_model("qwen2", tied=tied)
    model.save_pretrained(tmp_path)
    data = FixedData([[3, 3, 4, 9, 30], [3, 5, 60, 61]] * 8)
    method = create_method("svd-llm", {"embeddings": True, "jitter": 1e-3})
    results: list[Any] = []
    for opened in (load_model(tmp_path), open_streamed(tmp_path)):
        factors = method.fit(opened, data).factors("model.embed_tokens")
        a, b = factors.truncate(7)
        results.append(b @ a)
    assert torch.allclose(*results, atol=1e-4)


def test_methods_without_a_rule_refuse_before_any_work() -> None:
    for name in ("laser", "asvd"):
        with pytest.raises(UserError, match=f"{name} has no rule for the rows of an embedding.*svd or svd-llm"):
            create_method(name, {"embeddings": True})


def test_the_option_leaves_no_trace_where_it_is_off() -> None:
    assert "embeddings" not in create_method("svd", {}).model_dump(mode="json")
    assert create_method("svd", {}).fit_key() != create_method("svd", {"embeddings": True}).fit_key()


def test_an_embedding_that_computes_more_is_refused() -> None:
    model = random_model("llama", tied=True)
    model.set_input_embeddings(torch.nn.Embedding(96, 32, max_norm=1.0))
    with pytest.raises(UserError, match="does more than look rows up"):
        create_method("svd", {"embeddings": True}).targets(model)


@pytest.mark.parametrize("name", ["svd", "svd-llm", "bs", "bsi"])
@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "gemma3"])
def test_policies_learn_which_unit_is_looked_up_alone(architecture: str, name: str) -> None:
    """A tied embedding is the head."""
    for tied in (True, False):
        shape = create_method(name, {"embeddings": True}).shape(random_model(architecture, tied=tied), 2.0)
        assert [unit.lookup for unit in shape.units[-2:]] == [False, not tied]


def test_a_ratio_out_of_reach_names_the_option() -> None:
    model = random_model("llama", tied=True)
    for options, hint in (({}, True), ({"embeddings": True}, False)):
        method = create_method("svd", options)
        with pytest.raises(UserError, match="out of reach") as refusal:
            method.compress(model, method.fit(model, None), Budget(40.0))
        assert ("or factorise the token embedding too (svd:embeddings=true)" in str(refusal.value)) == hint


@pytest.mark.parametrize("rank", [None, 5])
def test_the_controls_do_with_an_embedding_what_they_do_with_any_matrix(rank: int | None) -> None:
    """Project onto random directions, or keep the columns of largest norm as they are."""
    weight = random_tensor(8, 9000, 12).float()
    a, b = create_method("random").decompose_embedding(weight, rank=rank).truncate(5)  # type: ignore[attr-defined]
    torch.testing.assert_close(a @ a.T, torch.eye(5))
    torch.testing.assert_close(b, weight @ a.T, rtol=1e-4, atol=1e-5)
    plain = create_method("random").decompose(weight)  # type: ignore[attr-defined]
    torch.testing.assert_close(plain.truncate(5)[1] @ plain.truncate(5)[0], b @ a, rtol=1e-4, atol=1e-5)
    factors = create_method("magnitude").decompose_embedding(weight, rank=rank)  # type: ignore[attr-defined]
    a, b = factors.truncate(5)
    norms = weight.norm(dim=0)
    columns = (b @ a).abs().sum(0) > 0
    assert int(columns.sum()) == 5
    assert float(norms[columns].min()) >= float(norms[~columns].max())
    assert torch.equal((b @ a)[:, columns], weight[:, columns])
    torch.testing.assert_close(factors.spectrum, norms.sort(descending=True).values)


@pytest.mark.parametrize("name", ["asvd", "joint-rank-k", "laser"])
def test_a_method_without_a_rule_for_rows_says_so_in_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=rf"option embeddings=True is not usable: {name} has no rule"):
        create_method(name, {"embeddings": True})
