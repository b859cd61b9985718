"""The Fisher information against plain autograd, and the SVD that it weights."""

from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.collection import input_fisher
from lowrank_bench.methods.calibration.statistics import example_losses
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.library.fwsvd import FWSVD, fisher_scale
from lowrank_bench.methods.library.svd import SVD
from lowrank_bench.models.architectures import ARCHITECTURES, IN_PLACE, random_model
from lowrank_bench.models.matrices import embedding_matrix, get_linear, matrices


def by_autograd(model: Any, names: list[str], data: RandomData, axis: Literal["in", "out"]) -> dict[str, torch.Tensor]:
    """One example at a time, without its padding, through the model's own loss and full weight gradients."""
    totals = {name: torch.zeros(()) for name in names}
    examples = list(data.batches(None, 1))
    for example in examples:
        length = int(example["attention_mask"].sum())
        model.zero_grad()
        model(input_ids=example["input_ids"][:, :length], labels=example["labels"][:, :length]).loss.backward()
        for name in names:
            gradient = model.get_submodule(name).weight.grad
            assert gradient is not None
            totals[name] = totals[name] + gradient.square().sum(0 if axis == "in" else 1)
    model.zero_grad()
    return {name: total / len(examples) for name, total in totals.items()}


def embedding_by_autograd(model: Any, data: RandomData, summed: int) -> torch.Tensor:
    """The same for the token embedding, and the head that is tied to it."""
    examples = list(data.batches(None, 1))
    total, weight = torch.zeros(()), model.get_input_embeddings().weight
    for example in examples:
        length = int(example["attention_mask"].sum())
        loss = model(input_ids=example["input_ids"][:, :length], labels=example["labels"][:, :length]).loss
        total = total + torch.autograd.grad(loss, weight)[0].square().sum(summed)
    return total / len(examples)


@pytest.mark.parametrize("architecture", ARCHITECTURES + IN_PLACE)
def test_fisher_equals_per_example_autograd(architecture: str) -> None:
    """With the model's own loss as the reference, labels are shifted exactly once and padding has no influence."""
    model, data = random_model(architecture), RandomData(6)
    names = [matrix.name for matrix in matrices(model)]
    axes: tuple[Literal["in", "out"], ...] = ("in", "out")
    for axis in axes:
        expected = by_autograd(model, names, data, axis)
        fisher = input_fisher(model, names, data, None, 3, axis)
        for name in names:
            matrix = get_linear(model, name)
            assert fisher[name].shape == (matrix.in_features if axis == "in" else matrix.out_features,)
            torch.testing.assert_close(fisher[name], expected[name], rtol=2e-3, atol=1e-6 * float(expected[name].max()))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES + IN_PLACE)
def test_fisher_of_an_embedding_equals_per_example_autograd(architecture: str, tied: bool) -> None:
    """Lookup and tied head are one matrix, whose gradients meet before they are squared."""
    model, data = random_model(architecture, tied), RandomData(5)
    matrix = embedding_matrix(model)
    assert bool(matrix.head) == tied
    axes: tuple[tuple[Literal["in", "out"], int], ...] = (("in", 1), ("out", 0))
    for axis, summed in axes:
        expected = embedding_by_autograd(model, data, summed)
        fisher = input_fisher(model, [matrix.name], data, None, 3, axis)[matrix.name]
        assert fisher.shape == (matrix.out_features if axis == "in" else matrix.in_features,)
        torch.testing.assert_close(fisher, expected, rtol=2e-3, atol=1e-6 * float(expected.max()))
        assert bool((fisher == 0).any()) == (axis == "in" and not tied), "an untied row without lookups has no gradient"


def test_fisher_of_an_embedding_does_not_depend_on_the_batch_size() -> None:
    model = random_model("qwen2", tied=True)
    whole, single = (input_fisher(model, ["model.embed_tokens"], RandomData(7), None, size) for size in (7, 1))
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-9)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert not embedding._forward_hooks
    assert not head._forward_hooks
    assert not head._forward_pre_hooks


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_an_embedding_are_weighted_and_none_counts_nothing(tied: bool) -> None:
    """The objective is Σ_v f_v ‖e_v - b_v A‖²; alternating least squares, which knows nothing else, gets no lower."""
    model, method = random_model("llama", tied), create_method("fwsvd", {"embeddings": True})
    assert isinstance(method, FWSVD)
    groups = method.groups(model)
    rows = next(f for group, f in method.collect(model, RandomData(), groups) if group.embedding)
    plain = input_fisher(model, ["model.embed_tokens"], RandomData(), None)["model.embed_tokens"].double()
    distinct = sum(
        len(set(ids[mask.bool()].tolist())) for ids, mask in zip(RandomData().ids, RandomData().mask, strict=True)
    )
    torch.testing.assert_close(rows, plain + plain.sum() / distinct)
    assert float(rows.min()) > 0
    weight = model.get_input_embeddings().weight.detach()
    factors = method.fit(model, RandomData()).factors("model.embed_tokens")
    share = rows / rows.mean() + 1e-6
    for rank in (2, 9):
        a, b = (part.double() for part in factors.truncate(rank))
        ours = float((share[:, None] * (weight.double() - b @ a) ** 2).sum())
        assert ours == pytest.approx(float((factors.spectrum[rank:].double() ** 2).sum()), rel=1e-3)
        first = torch.randn(rank, weight.shape[1], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for _ in range(200):
            second = weight.double() @ torch.linalg.pinv(first)
            weighted = second * share.sqrt()[:, None]
            first = torch.linalg.pinv(weighted) @ (weight.double() * share.sqrt()[:, None])
        assert ours <= float((share[:, None] * (weight.double() - second @ first) ** 2).sum()) * (1 + 1e-4)


def test_columns_of_an_embedding_are_weighted_with_the_other_axis() -> None:
    model, method = random_model("llama", True), create_method("fwsvd", {"embeddings": True, "axis": "out"})
    fisher = input_fisher(model, ["model.embed_tokens"], RandomData(), None, axis="out")["model.embed_tokens"]
    weight, scale = model.get_input_embeddings().weight.detach(), fisher_scale(fisher).float()
    factors = method.fit(model, RandomData()).factors("model.embed_tokens")
    u, s, vt = torch.linalg.svd(weight * scale, full_matrices=False)
    torch.testing.assert_close(factors.spectrum, s, rtol=1e-3, atol=1e-5)
    a, b = factors.truncate(5)
    torch.testing.assert_close(b @ a, (u[:, :5] * s[:5]) @ vt[:5] / scale, rtol=1e-3, atol=1e-4)


def test_an_embedding_without_any_gradient_is_decomposed_as_by_svd() -> None:
    weight = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    ours = FWSVD(embeddings=True).decompose_embedding(weight, torch.zeros(40))
    plain = SVD(embeddings=True).decompose_embedding(weight)
    torch.testing.assert_close(ours.spectrum, plain.spectrum)
    with pytest.raises(ValueError, match="Fisher information holds NaN"):
        FWSVD(embeddings=True).decompose_embedding(weight, torch.full((40,), float("nan")))
    with pytest.raises(ValueError, match="needs the Fisher"):
        FWSVD(embeddings=True).decompose_embedding(weight)


def test_fisher_does_not_depend_on_the_batch_size_and_counts_samples() -> None:
    model, names = random_model("llama"), ["model.layers.0.mlp.down_proj", "lm_head"]
    whole, single = (input_fisher(model, names, RandomData(7), None, size) for size in (7, 1))
    first = input_fisher(model, names, RandomData(7), 3, 2)
    exact = by_autograd(model, names, RandomData(7), "in")
    for name in names:
        torch.testing.assert_close(whole[name], single[name], rtol=1e-4, atol=1e-7)
        assert not torch.allclose(first[name], exact[name], rtol=1e-2)


def test_fisher_leaves_the_model_as_it_was() -> None:
    model = random_model("qwen2").train()
    model.lm_head.weight.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    input_fisher(model, ["lm_head"], RandomData(2), None)
    assert model.training
    assert not model.lm_head.weight.requires_grad
    assert model.model.norm.weight.requires_grad
    assert all(p.grad is None and torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not model.lm_head._backward_hooks
    assert not model.lm_head._forward_pre_hooks


def test_example_losses_are_the_models_own() -> None:
    model, batch = random_model("llama"), next(iter(RandomData(3).batches(None, 3)))
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = example_losses(logits, batch["labels"])
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        ids, labels = batch["input_ids"][row : row + 1, :length], batch["labels"][row : row + 1, :length]
        torch.testing.assert_close(losses[row], model(input_ids=ids, labels=labels).loss, rtol=1e-4, atol=1e-5)
    assert example_losses(logits, torch.full_like(batch["labels"], -100)).tolist() == [0.0, 0.0, 0.0]


def matrix(m: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64), torch.rand(n, generator=generator) + 0.01


@settings(deadline=None, max_examples=40)
@given(m=st.integers(2, 12), n=st.integers(2, 12), seed=st.integers(0, 99), factor=st.floats(1e-8, 1e8))
def test_only_relative_weights_matter_and_equal_ones_give_the_svd(m: int, n: int, seed: int, factor: float) -> None:
    weight, fisher = matrix(m, n, seed)
    plain, equal = SVD().decompose(weight), FWSVD().decompose(weight, torch.full((n,), factor))
    first, second = FWSVD().decompose(weight, fisher), FWSVD().decompose(weight, fisher * factor)
    for rank in range(1, min(m, n)):
        for factors, other in ((plain, equal), (first, second)):
            (a, b), (c, d) = factors.truncate(rank), other.truncate(rank)
            torch.testing.assert_close(b @ a, d @ c, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=40)
@given(m=st.integers(2, 12), n=st.integers(2, 12), seed=st.integers(0, 99), out=st.booleans())
def test_weighted_error_is_the_tail_and_at_most_that_of_the_svd(m: int, n: int, seed: int, out: bool) -> None:
    weight, fisher = matrix(m, n, seed)
    method, weight = (FWSVD(axis="out"), weight.T.contiguous()) if out else (FWSVD(), weight)
    scale = fisher_scale(fisher)[:, None] if out else fisher_scale(fisher)
    fitted, plain = method.decompose(weight, fisher), SVD().decompose(weight)
    optimum = torch.linalg.svdvals(weight * scale)
    for rank in range(1, min(m, n) + 1):
        (a, b), (c, d) = fitted.truncate(rank), plain.truncate(rank)
        error = ((weight - b @ a) * scale).square().sum()
        torch.testing.assert_close(error, optimum[rank:].square().sum(), rtol=1e-6, atol=1e-9)
        assert error <= ((weight - d @ c) * scale).square().sum() + 1e-9


def test_an_important_input_is_kept_better_than_by_the_svd() -> None:
    weight, _ = matrix(10, 8, 3)
    fisher = torch.ones(8)
    fisher[5] = 1000.0
    (a, b), (c, d) = FWSVD().decompose(weight, fisher).truncate(3), SVD().decompose(weight).truncate(3)
    assert (weight - b @ a)[:, 5].norm() < 0.1 * (weight - d @ c)[:, 5].norm()


def test_zero_fisher_is_finite_and_a_broken_one_is_an_error() -> None:
    weight, fisher = matrix(6, 5, 0)
    fisher[2] = 0
    for values in (fisher, torch.zeros(5)):
        factors = FWSVD().decompose(weight, values)
        assert all(torch.isfinite(part).all() for part in (factors.left, factors.right, factors.spectrum))
        torch.testing.assert_close(factors.left @ factors.right, weight, rtol=1e-6, atol=1e-6)
    for broken in (float("nan"), float("inf")):
        fisher[2] = broken
        with pytest.raises(ValueError, match="Fisher information holds NaN"):
            FWSVD().decompose(weight, fisher)


def test_data_is_needed() -> None:
    with pytest.raises(ValueError, match="needs task data"):
        create_method("fwsvd").fit(random_model("llama"), None)
    with pytest.raises(ValueError, match="needs the Fisher"):
        FWSVD().decompose(torch.ones(2, 2))
