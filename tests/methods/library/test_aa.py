"""The properties of AA-SVD."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.offload_cache import OffloadCache
from lowrank_bench.methods.calibration.two_streams import Pairs, TwoStreams
from lowrank_bench.methods.contract import logits
from lowrank_bench.methods.contract_parts import FixedRank, RandomData
from lowrank_bench.methods.library.aa import AASVD, Refinement
from lowrank_bench.methods.linalg.whitening import whiten
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.blocks import find_blocks, hidden_in
from lowrank_bench.models.matrices import get_linear, low_rank_layers, matrices

SHAPES = st.tuples(st.integers(3, 9), st.integers(3, 9), st.integers(0, 1000))


def problem(m: int, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """W (m, n), X (n, 40) and X̂, which is X with noise."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    x = torch.randn(n, n, generator=generator, dtype=torch.float64) @ torch.randn(
        n, 40, generator=generator, dtype=torch.float64
    )
    return w, x, x + 0.5 * torch.randn(n, 40, generator=generator, dtype=torch.float64)


def solve(w: Tensor, x: Tensor, other: Tensor, rank: int, **options: float) -> tuple[Tensor, Tensor]:
    """Return BA of rank r and the spectrum."""
    factors = AASVD(ridge=0, **options).shifted(w, (x - other) @ other.T, other @ other.T)  # type: ignore[arg-type]
    a, b = factors.truncate(rank)
    return b.double() @ a.double(), factors.spectrum.double()


def loss(w: Tensor, x: Tensor, approximation: Tensor, other: Tensor) -> float:
    return float((w @ x - approximation @ other).square().sum())


@settings(deadline=None, max_examples=40)
@given(SHAPES)
def test_objective_4_is_the_papers_formula_and_its_loss(shape: tuple[int, int, int]) -> None:
    """[W X X̂ᵀ L̂⁻ᵀ]_r L̂⁻¹; the loss is ‖W X‖² less the kept squares; no other objective's solution has less."""
    m, n, seed = shape
    w, x, other = problem(m, n, seed)
    lower = torch.linalg.cholesky(other @ other.T)
    u, s, vt = torch.linalg.svd(torch.linalg.solve_triangular(lower, other @ x.T @ w.T, upper=False).T)
    rank = max(min(m, n) // 2, 1)
    expected = torch.linalg.solve_triangular(lower.T, (u[:, :rank] * s[:rank] @ vt[:rank]).T, upper=True).T
    solution, spectrum = solve(w, x, other, rank)
    own = loss(w, x, solution, other)
    scale = float((w @ x).square().sum())
    assert own == pytest.approx(loss(w, x, expected, other), abs=1e-5 * scale)
    torch.testing.assert_close(spectrum, s[: min(m, n)], rtol=1e-4, atol=1e-4 * float(s[0]))
    assert own == pytest.approx(scale - float(s[:rank].square().sum()), abs=1e-5 * scale)
    for beta in (0.0, 0.3):
        assert own <= loss(w, x, solve(w, x, other, rank, beta=beta)[0], other) + 1e-5 * scale
    dense = whiten(w, x @ x.T).truncate(rank)
    assert own <= loss(w, x, dense[1].double() @ dense[0].double(), other) + 1e-5 * scale


@settings(deadline=None, max_examples=30)
@given(SHAPES, st.floats(0, 1))
def test_beta_mixes_the_second_moments(shape: tuple[int, int, int], beta: float) -> None:
    """SAES-SVD's form: W (β X X̂ᵀ + (1-β) X̂ X̂ᵀ) L̂⁻ᵀ is what is decomposed."""
    m, n, seed = shape
    w, x, other = problem(m, n, seed)
    lower = torch.linalg.cholesky(other @ other.T)
    mixed = w @ (beta * x @ other.T + (1 - beta) * other @ other.T)
    s = torch.linalg.svdvals(torch.linalg.solve_triangular(lower, mixed.T, upper=False))
    spectrum = solve(w, x, other, 1, beta=beta)[1]
    torch.testing.assert_close(spectrum, s[: min(m, n)], rtol=1e-4, atol=1e-4 * float(s[0]))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_equal_streams_are_svd_llm(beta: float) -> None:
    w, x, _ = problem(8, 6, 3)
    expected = whiten(w, x @ x.T)
    factors = AASVD(ridge=0, beta=beta).shifted(w, torch.zeros(6, 6, dtype=torch.float64), x @ x.T)
    for rank in (1, 3, 6):
        a, b = factors.truncate(rank)
        other_a, other_b = expected.truncate(rank)
        torch.testing.assert_close(b @ a, other_b @ other_a, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_dense_stream_gives_svd_llm(architecture: str, embeddings: bool) -> None:
    """A pass gathers the moments that `input_moments` does, for all layers, an untied head included."""
    model, data = random_model(architecture), RandomData()
    results = []
    more = {"embeddings": embeddings}
    for name, options in (("svd-llm", more), ("aa", more | {"stream": "dense"})):
        method, small = create_method(name, options), copy.deepcopy(model)
        report = method.compress(small, method.fit(model, data), Budget(2.0), None, data)
        results.append((report.ranks, {n: layer.dense_weight() for n, layer in low_rank_layers(small).items()}))
    assert results[0][0] == results[1][0]
    for name, weight in results[0][1].items():
        torch.testing.assert_close(
            results[1][1][name], weight, rtol=1e-3, atol=1e-4 * float(weight.detach().abs().max())
        )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "opt", "gpt-neox"])
def test_blocks_see_the_compressed_embedding_whose_factors_are_those_of_svd_llm(architecture: str, tied: bool) -> None:
    """The first block's second stream starts from the factorised rows, and the dense one from those that were there."""
    model, data = random_model(architecture, tied), RandomData()
    dense, method = copy.deepcopy(model), create_method("aa", {"embeddings": True})
    assert isinstance(method, AASVD)
    fitted, whitened = method.fit(model, data), create_method("svd-llm", {"embeddings": True})
    assert method.fit_key() == whitened.fit_key()
    entering: dict[str, list[Tensor]] = {}
    enter = TwoStreams._enter

    def watched(self: TwoStreams, stream: str, cache: OffloadCache) -> None:
        enter(self, stream, cache)
        entering[stream] = [cache.get((stream, index)) for index in range(len(self.batches))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TwoStreams, "_enter", watched)
        method.compress(model, fitted, Budget(2.0), None, data)
    other = copy.deepcopy(dense)
    whitened.compress(other, fitted, Budget(2.0), None, data)  # type: ignore[arg-type]
    rows, expected = (part.get_input_embeddings().dense_weight() for part in (model, other))
    assert torch.equal(rows, expected)
    for stream, part in (("dense", dense), ("shifted", other)):
        for batch, hidden in zip(data.batches(None, 8), entering[stream], strict=True):
            with torch.no_grad():
                states = part(**{k: batch[k] for k in ("input_ids", "attention_mask")}, output_hidden_states=True)
            torch.testing.assert_close(hidden, states.hidden_states[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(entering["dense"][0], entering["shifted"][0], atol=1e-3)


def test_both_methods_share_one_fit() -> None:
    first, second = create_method("svd-llm").fit_key(), create_method("aa", {"beta": 0.3, "refine_passes": 2}).fit_key()
    assert first == second


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "opt"])
def test_later_layers_read_compressed_inputs(architecture: str) -> None:
    """Second moments are those of hooks on both models, taken when the layers before are replaced, and no others."""
    model, data = random_model(architecture), RandomData()
    dense = copy.deepcopy(model)
    batches = list(data.batches(None, 3))
    names = [matrix.name for matrix in matrices(model)]
    replaced: list[str] = []

    def replace(name: str, shift: Tensor, gram: Tensor) -> None:
        earlier = {other for other in replaced if not same_input(dense, batches[0], other, name)}
        check = copy.deepcopy(dense)
        for other in earlier:
            get_linear(check, other).weight.data *= 0.9
        x, other_x = (inputs(which, batches, name).double() for which in (dense, check))
        torch.testing.assert_close(gram, other_x.T @ other_x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(shift, (x - other_x).T @ other_x, rtol=1e-3, atol=1e-3)
        get_linear(model, name).weight.data *= 0.9
        replaced.append(name)

    TwoStreams(model, batches, shifted=True).replace_layers(names, replace)
    assert sorted(replaced) == sorted(names)
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), dense.parameters(), strict=True))


def same_input(model: nn.Module, batch: dict[str, Tensor], first: str, second: str) -> bool:
    seen: list[Tensor] = []
    handles = [
        get_linear(model, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for name in (first, second)
    ]
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return seen[0] is seen[1]


def inputs(model: nn.Module, batches: list[dict[str, Tensor]], name: str) -> Tensor:
    """Return a layer's inputs over all tokens but padding, (tokens, n)."""
    seen: list[Tensor] = []
    handle = get_linear(model, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            x = seen.pop()
            rows.append(x.reshape(-1, x.shape[-1])[batch["attention_mask"].reshape(-1).bool()])
    handle.remove()
    return torch.cat(rows)


def test_full_rank_everywhere_is_exact() -> None:
    """By induction: each layer is exact, so that the next one's streams agree."""
    model, data = random_model("llama"), RandomData()
    small, method = copy.deepcopy(model), create_method("aa", {"guard": False})
    method.compress(small, method.fit(model, data), FixedRank(), None, data)
    assert (logits(small) - logits(model)).abs().max() <= 1e-3 * logits(model).abs().max()


def test_refinement_brings_blocks_nearer_and_none_changes_nothing() -> None:
    """The mean squared error of the last hidden states on the calibration data falls; 0 passes are no refinement."""
    model, data = random_model("llama"), RandomData()
    fitted = create_method("aa").fit(model, data)
    errors, weights = [], []
    trained = {"refine_passes": 20, "refine_lr": 1e-3}
    for options in ({}, {"refine_passes": 0}, trained, {"stream": "dense"}, {"stream": "dense"} | trained):
        small, method = copy.deepcopy(model), create_method("aa", options)
        report = method.compress(small, fitted, Budget(3.0), None, data)
        assert bool(report.tokens) == bool(options.get("refine_passes"))
        batch = next(data.batches(None, 8))
        with torch.no_grad():
            own, dense = (m.model(batch["input_ids"], batch["attention_mask"])[0] for m in (small, model))
        errors.append(float((own - dense)[batch["attention_mask"].bool()].square().mean()))
        weights.append(torch.cat([parameter.detach().flatten() for parameter in small.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert errors[2] < 0.9 * errors[0]
    assert errors[4] < 0.9 * errors[3]


@pytest.mark.parametrize(("stream", "embeddings"), [("dense", False), ("dense", True), ("compressed", False)])
@pytest.mark.parametrize("architecture", ["llama", "gpt-neox", "gemma3"])
def test_the_refinement_reads_the_model_compressed_so_far_with_either_stream(
    architecture: str, stream: str, embeddings: bool
) -> None:
    """A block's inputs are those behind the refined blocks before it, its targets the dense model's outputs."""
    model, data, embedding = random_model(architecture), RandomData(), {"embeddings": embeddings}
    dense, names = copy.deepcopy(model), find_blocks(model).names
    method = create_method("aa", embedding | {"stream": stream, "refine_passes": 2, "refine_lr": 1e-2})
    fitted, batches = method.fit(model, data), list(data.batches(None, 8))
    blocks: list[str] = []
    refine = Refinement.__call__

    def watched(self: Refinement, block: nn.Module, pairs: Pairs) -> None:
        for index, mask, hidden, target in pairs:
            valid = mask.bool()
            for states, part, side in ((hidden, model, 0), (target, dense, 1)):
                expected = passing(part, pairs.name, batches[index])[side]
                torch.testing.assert_close(states[valid], expected[valid], rtol=1e-4, atol=1e-4)
            if blocks or embeddings:
                assert not torch.allclose(hidden, passing(dense, pairs.name, batches[index])[0], atol=1e-3)
        blocks.append(pairs.name)
        refine(self, block, pairs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Refinement, "__call__", watched)
        method.compress(model, fitted, Budget(3.0), None, data)
    assert blocks == list(names)


def passing(model: nn.Module, block: str, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what enters and what leaves a block when the whole model runs."""
    seen: list[Tensor] = []

    def see(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.extend((hidden_in(args, kwargs), output if isinstance(output, Tensor) else output[0]))

    handle = model.get_submodule(block).register_forward_hook(see, with_kwargs=True)
    with torch.no_grad():
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    handle.remove()
    return seen[0], seen[1]


def test_the_dense_stream_computes_a_second_one_for_the_refinement_alone() -> None:
    """And its factors are svd-llm's until they are refined."""
    model, data = random_model("llama"), RandomData()
    whitened, method = create_method("svd-llm"), create_method("aa", {"stream": "dense", "refine_passes": 1})
    fitted, small = whitened.fit(model, data), copy.deepcopy(model)
    whitened.compress(small, fitted, Budget(2.0), None, data)
    advanced: list[str] = []
    runs = TwoStreams.run

    def count(self: TwoStreams, block: nn.Module, name: str, index: int, hidden: Tensor) -> Tensor:
        advanced.append(name)
        return runs(self, block, name, index, hidden)

    def compare(self: Refinement, block: nn.Module, pairs: Pairs) -> None:
        for name, layer in low_rank_layers(block).items():
            expected = small.get_submodule(f"{pairs.name}.{name}").dense_weight()
            torch.testing.assert_close(layer.dense_weight(), expected, rtol=1e-3, atol=1e-3)
        for parameter in block.parameters():
            parameter.data *= 1.1  # later moments must not see it

    counts = []
    for passes in (0, 1):
        advanced.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TwoStreams, "run", count)
            patch.setattr(Refinement, "__call__", compare)
            options = {"stream": "dense", "refine_passes": passes}
            create_method("aa", options).compress(copy.deepcopy(model), fitted, Budget(2.0), None, data)
        counts.append(len(advanced))
    batches = len(list(data.batches(None, method.batch_size)))
    assert counts[1] - counts[0] == 2 * 2 * batches  # blocks: the targets, and the compressed stream


@pytest.mark.parametrize("stream", ["dense", "compressed"])
@pytest.mark.parametrize("rate", [1e10, 1e25, 1e36])
def test_a_refinement_that_diverges_is_one_sentence(stream: str, rate: float) -> None:
    model, data = random_model("llama"), RandomData()
    method = create_method("aa", {"stream": stream, "refine_passes": 2, "refine_lr": rate})
    with pytest.raises(UserError, match=r"weights of model.layers.\d are no longer finite .* refine_lr \(now 1e\+"):
        method.compress(model, method.fit(model, data), Budget(2.0), None, data)


def test_models_without_blocks_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

    with pytest.raises(UserError, match="use svd-llm"):
        TwoStreams(Odd(), list(RandomData().batches(None, 4)), shifted=True)
