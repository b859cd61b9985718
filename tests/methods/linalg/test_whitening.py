"""The whitened core against the papers' own formulas, in float64."""

import math
from dataclasses import replace
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.collection import gradient_grams, input_moments
from lowrank_bench.methods.calibration.moments import Moments, MomentSums
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.afm import AFM
from lowrank_bench.methods.library.asvd import ASVD
from lowrank_bench.methods.linalg.whitening import VERSION, balance, root, whiten
from lowrank_bench.models.architectures import ARCHITECTURES, IN_PLACE, random_model
from lowrank_bench.models.matrices import embedding_matrix, matrices

SHAPES = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(0, 1000))


def problem(m: int, n: int, seed: int, tokens: int = 40) -> tuple[Tensor, Tensor]:
    """W (m, n) and X (n, tokens) with inputs of very different sizes that are correlated and not centred."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n, n, generator=generator, dtype=torch.float64) * torch.logspace(0, 1, n, dtype=torch.float64)
    x = mix @ torch.randn(n, tokens, generator=generator, dtype=torch.float64) + 2
    return torch.randn(m, n, generator=generator, dtype=torch.float64), x


def moments(x: Tensor) -> Moments:
    return Moments(x @ x.T, x.sum(1), x.abs().sum(1), x.shape[1])


def product(factors: Factors, rank: int) -> Tensor:
    a, b = factors.truncate(rank)
    return b.double() @ a.double()


def loss(error: Tensor, x: Tensor) -> float:
    return float((error @ x).square().sum())


def close(a: float, b: float, scale: float) -> bool:
    return abs(a - b) <= 1e-5 * scale + 1e-9


@settings(deadline=None, max_examples=40)
@given(SHAPES, st.sampled_from(["input", "output", "auto"]))
def test_loss_is_the_tail_of_the_spectrum_and_of_wx(shape: tuple[int, int, int], side: str) -> None:
    m, n, seed = shape
    w, x = problem(m, n, seed)
    factors = whiten(w, x @ x.T, side=side)  # type: ignore[arg-type]
    singular = torch.linalg.svdvals(w @ x)[: min(m, n)]
    torch.testing.assert_close(factors.spectrum.double(), singular, rtol=1e-4, atol=1e-4 * float(singular[0]))
    whole = float(singular.square().sum())
    for rank in range(1, min(m, n) + 1):
        assert close(loss(w - product(factors, rank), x), float(singular[rank:].square().sum()), whole)


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_cholesky_symmetric_root_drone_and_swift_svd_give_the_same_matrix(shape: tuple[int, int, int]) -> None:
    m, n, seed = shape
    w, x = problem(m, n, seed)
    gram = x @ x.T
    values, vectors = torch.linalg.eigh(gram)
    rank = max(1, min(m, n) // 2)
    singular = torch.linalg.svdvals(w @ x)
    if singular[rank - 1] - (singular[rank] if rank < len(singular) else 0) < 1e-3 * singular[0]:
        return  # two components of one size: the best matrix is not unique
    roots = {"cholesky": torch.linalg.cholesky(gram), "symmetric": vectors * values.sqrt() @ vectors.T}
    expected = {}
    for name, half in roots.items():
        u, s, vt = torch.linalg.svd(w @ half, full_matrices=False)
        expected[name] = (u[:, :rank] * s[:rank]) @ vt[:rank] @ torch.linalg.inv(half)
    ux, sx, _ = torch.linalg.svd(x, full_matrices=False)
    uw, sw, vwt = torch.linalg.svd(w, full_matrices=False)
    zu, zs, zvt = torch.linalg.svd(torch.diag(sw) @ vwt @ ux @ torch.diag(sx), full_matrices=False)
    expected["drone"] = uw @ ((zu[:, :rank] * zs[:rank]) @ zvt[:rank]) @ torch.diag(1 / sx) @ ux.T
    outputs = torch.linalg.eigh(w @ gram @ w.T).eigenvectors.flip(1)[:, :rank]
    expected["swift-svd"] = outputs @ outputs.T @ w
    for side in ("input", "output"):
        matrix = product(whiten(w, gram, side=side), rank)  # type: ignore[arg-type]
        for name, value in expected.items():
            torch.testing.assert_close(matrix, value, rtol=1e-3, atol=1e-3 * float(value.abs().max()), msg=name)


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_not_above_svd_nor_asvd_on_the_calibration_data(shape: tuple[int, int, int]) -> None:
    m, n, seed = shape
    w, x = problem(m, n, seed)
    best = whiten(w, x @ x.T)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    asvd = create_method("asvd")
    assert isinstance(asvd, ASVD)
    diagonal = asvd.decompose(w, moments(x))
    for rank in range(1, min(m, n)):
        least = loss(w - product(best, rank), x)
        slack = 1e-5 * loss(w, x)
        assert least <= loss(w - (u[:, :rank] * s[:rank]) @ vt[:rank], x) + slack
        assert least <= loss(w - product(diagonal, rank), x) + slack


@pytest.mark.parametrize(("m", "n"), [(5, 7), (7, 5)])
def test_equal_weights_are_the_svd(m: int, n: int) -> None:
    w, _ = problem(m, n, 3)
    u, s, vt = torch.linalg.svd(w, full_matrices=False)
    expected = (u[:, :2] * s[:2]) @ vt[:2]
    eye = torch.eye(n, dtype=torch.float64)
    for factors in (
        whiten(w, 5 * eye),
        whiten(w, torch.zeros(n, n)),  # an input that is always zero says nothing
        whiten(w, eye, torch.eye(m, dtype=torch.float64)),
        create_method("asvd", {"alpha": 0.0}).decompose(w, moments(torch.ones(n, 4))),  # type: ignore[attr-defined]
    ):
        torch.testing.assert_close(product(factors, 2), expected, rtol=1e-4, atol=1e-4)


def test_rank_deficient_grams_lose_no_more_than_the_optimum() -> None:
    """Fewer tokens than inputs: a Cholesky factor does not exist; the loss is the optimum all the same."""
    w, x = problem(8, 12, 1, tokens=5)
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(x @ x.T)
    singular = torch.linalg.svdvals(w @ x)
    for side in ("input", "output"):
        factors = whiten(w, x @ x.T, side=side)  # type: ignore[arg-type]
        for rank in (1, 3, 4):
            assert close(
                loss(w - product(factors, rank), x), float(singular[rank:].square().sum()), float(singular[0]) ** 2
            )
        torch.testing.assert_close(product(factors, 8), w, rtol=1e-3, atol=1e-3)


def exact_product(w: Tensor, gram: Tensor, rank: int) -> Tensor:
    """Return U_r U_rᵀ W with U the eigenvectors of W G Wᵀ, all in 60 digits."""
    with mpmath.workdps(60):
        wide, square = (mpmath.matrix(x.tolist()) for x in (w, gram))
        values, vectors = mpmath.eigsy(wide * square * wide.T)
        order = sorted(range(len(values)), key=lambda i: -values[i])[:rank]
        leading = mpmath.matrix(len(values), rank)
        for index, column in enumerate(order):
            leading[:, index] = vectors[:, column]
        projected = leading * (leading.T * wide)
        return torch.tensor([[float(projected[i, j]) for j in range(projected.cols)] for i in range(projected.rows)])


@pytest.mark.parametrize("scale", [1e4, 1e5, 1e6])
@pytest.mark.parametrize(("m", "n"), [(12, 8), (8, 12)])
def test_one_large_input_gives_the_exact_matrix(scale: float, m: int, n: int) -> None:
    """Nothing is added to a Gram matrix that has a Cholesky factor, however far its inputs are apart."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 100, generator=generator, dtype=torch.float64)
    x[3] *= scale
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    gram = x @ x.T
    with pytest.raises(AssertionError):  # what was added before is seen here
        torch.testing.assert_close(
            product(whiten(w, gram, jitter=1e-6), 4), exact_product(w, gram, 4).double(), rtol=1e-2, atol=1e-2
        )
    for side in ("auto", "input") if scale > 1e4 else ("auto", "input", "output"):
        factors = whiten(w, gram, side=side)  # type: ignore[arg-type]
        assert factors.jitter == (0.0,)
        for rank in (1, 4, 7):
            expected = exact_product(w, gram, rank).double()
            assert float((product(factors, rank) - expected).norm()) < 1e-6 * float(expected.norm())
        torch.testing.assert_close(product(factors, min(m, n)), w, rtol=1e-6, atol=1e-6)


def test_the_jitter_is_the_least_that_gives_a_factor() -> None:
    """None for a regular matrix, 1e-12 and tenfold for a singular one; the least asked for is always added."""
    _, x = problem(8, 12, 1, tokens=60)
    gram = x @ x.T
    lower, regular, added = root(gram)
    assert added == 0
    assert torch.equal(regular, gram)
    torch.testing.assert_close(lower @ lower.T, gram)
    few = x[:, :5] @ x[:, :5].T
    lower, regular, added = root(few)
    assert 1e-12 <= added <= 1e-10
    assert torch.equal(regular - few, torch.diag(regular.diagonal() - few.diagonal()))
    torch.testing.assert_close((regular - few).diagonal(), (added * few.diagonal().mean()).expand(12), rtol=0.1, atol=0)
    torch.testing.assert_close(lower @ lower.T, regular)
    assert root(gram, 0.25)[2] == 0.25
    torch.testing.assert_close(root(gram, 0.25)[1].diagonal(), gram.diagonal() + 0.25 * gram.diagonal().mean())
    assert root(torch.zeros(3, 3).double())[2] == 1
    indefinite = gram - 2 * torch.linalg.eigvalsh(gram)[0] * torch.eye(12)
    assert bool(torch.isfinite(root(indefinite)[0]).all())
    almost = torch.ones(2, 2).double()
    almost[1, 1] += 2e-16  # a factor exists, made of rounding
    assert not int(torch.linalg.cholesky_ex(almost)[1])
    assert root(almost)[2] > 0


@pytest.mark.parametrize("name", ["svd-llm", "svd-llm-v2", "drone", "io-svd", "basis-sharing", "afm", "sfsd"])
def test_what_was_added_is_recorded_by_matrix(name: str) -> None:
    """With few tokens every Gram matrix is singular; the fit says how much each got, and its key the version."""
    model = random_model("llama")
    method = create_method(name, {"samples": 1, "policy": "uniform"})
    few = method.fit(model, RandomData())
    recorded = few.meta.get("added_jitter", {})
    names = {group.name for group in method.groups(model)}  # type: ignore[attr-defined]
    assert recorded.keys() == (set() if name == "io-svd" else names)  # its moments are shrunk towards the identity
    assert all(1e-12 <= value < 1e-6 for values in recorded.values() for value in values)
    assert (
        "added_jitter"
        not in create_method(name, {"samples": None, "policy": "uniform"}).fit(model, RandomData(80)).meta
    )
    assert method.fit_key()["version"] == VERSION


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e10])
@pytest.mark.parametrize(("m", "n"), [(96, 72), (72, 96)])
@pytest.mark.parametrize("two_sided", [False, True])
def test_ill_conditioned_inputs_lose_no_more_than_by_the_svd(condition: float, m: int, n: int, two_sided: bool) -> None:
    """Inputs of that condition: the weighted loss of every rank is that of a float64 SVD of (Rᵀ)W S within 1e-5."""
    generator = torch.Generator().manual_seed(5)
    q, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    gram = q * torch.logspace(0, -math.log10(condition), n, dtype=torch.float64) @ q.T
    w = torch.randn(m, n, generator=generator, dtype=torch.float64)
    outer = torch.eye(m, dtype=torch.float64)
    if two_sided:
        outer = torch.linalg.cholesky(gram[:m, :m] if m < n else torch.eye(m) + torch.ones(m, m).double())
    factors = whiten(w, gram, outer @ outer.T if two_sided else None)
    assert factors.jitter == (0.0,) * (1 + two_sided)
    lower = torch.linalg.cholesky(gram)
    singular = torch.linalg.svdvals(outer.T @ w @ lower)
    for rank in (1, 10, 30, 60):
        error = outer.T @ (w - product(factors, rank)) @ lower
        least = float(singular[rank:].square().sum())
        assert abs(float(error.square().sum()) - least) <= 1e-5 * least + 1e-12 * float(singular.square().sum())


@pytest.mark.parametrize("name", ["svd-llm", "io-svd", "afm"])
def test_one_root_for_all_readers_of_an_input(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """q, k, v share one, gate and up another; the factors are those that each root of its own gives."""
    model, sizes = random_model("llama"), []
    method = create_method(name, {"samples": None, "policy": "uniform"})
    alone = method.fit(model, RandomData(80))

    def counting(gram: Tensor, jitter: float = 0.0) -> Any:
        sizes.append(len(gram))
        return root(gram, jitter)

    monkeypatch.setattr("lowrank_bench.methods.calibration.driver.root", counting)
    shared = method.fit(model, RandomData(80))
    groups = method.groups(model)  # type: ignore[attr-defined]
    layers = len(groups) // 7
    assert len(sizes) == 4 * layers + len(groups) % 7  # q k v, o, gate up, down; and the head
    monkeypatch.setattr("lowrank_bench.methods.calibration.moments.MomentSums.result", apart(MomentSums.result))
    sizes.clear()
    separate = method.fit(model, RandomData(80))
    assert len(sizes) == len(groups)
    for group in groups:
        for key, value in separate.factors(group.name).tensors().items():
            assert torch.equal(value, getattr(shared.factors(group.name), key))
            assert torch.equal(value, getattr(alone.factors(group.name), key))
    assert method._last is None  # type: ignore[attr-defined]


def apart(result: Any) -> Any:
    """Give each layer moments of its own."""
    return lambda sums: {name: replace(moments, readers=1) for name, moments in result(sums).items()}


def test_dead_inputs_keep_their_weights_finite() -> None:
    w, x = problem(6, 6, 2)
    x[2] = 0
    factors = whiten(w, x @ x.T)
    assert all(bool(torch.isfinite(value).all()) for value in (factors.left, factors.right, factors.spectrum))
    torch.testing.assert_close(product(factors, 6), w, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_two_sided_loss_is_the_tail(shape: tuple[int, int, int]) -> None:
    m, n, seed = shape
    w, x = problem(m, n, seed)
    g = problem(m, m, seed + 1)[1]
    r = g @ g.T / 40
    factors = whiten(w, x @ x.T, r)
    right, left = torch.linalg.cholesky(x @ x.T), torch.linalg.cholesky(r)
    singular = torch.linalg.svdvals(left.T @ w @ right)
    for rank in range(1, min(m, n)):
        error = w - product(factors, rank)
        value = float(torch.trace(r @ error @ (x @ x.T) @ error.T))
        assert close(value, float(singular[rank:].square().sum()), float(singular.square().sum()))
    torch.testing.assert_close(
        product(whiten(w, x @ x.T, torch.eye(m, dtype=torch.float64)), 1),
        product(whiten(w, x @ x.T), 1),
        rtol=1e-3,
        atol=1e-3,
    )


@settings(deadline=None, max_examples=30)
@given(SHAPES)
def test_affine_optimum_beats_any_without_a_bias_and_keeps_the_mean(shape: tuple[int, int, int]) -> None:
    m, n, seed = shape
    w, x = problem(m, n, seed)
    afm = create_method("afm")
    assert isinstance(afm, AFM)
    factors = afm.decompose(w, moments(x))
    y = w @ x
    centred = y - y.mean(1, keepdim=True)
    tail = torch.linalg.svdvals(centred).square()
    plain = torch.linalg.svdvals(y).square()
    for rank in range(1, min(m, n)):
        offset = factors.offset(rank)
        assert offset is not None
        error = y - product(factors, rank) @ x - offset.double()[:, None]
        assert close(float(error.square().sum()), float(tail[rank:].sum()), float(plain.sum()))
        assert float(error.square().sum()) <= float(plain[rank:].sum()) + 1e-5 * float(plain.sum())
        assert float(error.mean(1).abs().max()) <= 1e-4 * float(y.abs().max())
        without = y - product(factors, rank) @ x  # the released SFSD code: centred directions and no bias
        assert float(without.square().sum()) >= float(plain[rank:].sum()) - 1e-5 * float(plain.sum())


def test_balance_keeps_the_product() -> None:
    left, right = torch.randn(4, 3, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    right[1] = 0
    a, b = balance(left, right)
    torch.testing.assert_close(a @ b, left @ right)
    torch.testing.assert_close(a.norm(dim=0)[[0, 2]], b.norm(dim=1)[[0, 2]])


def test_overflown_statistics_are_an_error() -> None:
    with pytest.raises(ValueError, match="overflow"):
        whiten(torch.ones(2, 2), torch.full((2, 2), float("inf")))


def keeper(name: str, store: dict[str, Tensor]) -> Any:
    def hook(_: Any, __: Any, output: Tensor) -> None:
        output.retain_grad()
        store[name] = output

    return hook


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *IN_PLACE, "tied llama"])
def test_gradient_grams_equal_one_example_at_a_time(architecture: str) -> None:
    """Of matrices, of the embedding, and of the logits of a tied head."""
    model = random_model(architecture.split()[-1], tied="tied" in architecture or None)
    data, embedding = RandomData(4), embedding_matrix(model)
    heads = [embedding.head] if embedding.head else []
    names = [*[matrix.name for matrix in matrices(model)], embedding.name, *heads]
    expected = {name: torch.zeros(1).double() for name in names}
    for example in data.batches(None, 1):
        length = int(example["attention_mask"].sum())
        outputs: dict[str, Tensor] = {}

        handles = [model.get_submodule(name).register_forward_hook(keeper(name, outputs)) for name in names]
        out = model(input_ids=example["input_ids"][:, :length], labels=example["labels"][:, :length])
        targets = int((example["labels"][0, 1:length] != -100).sum())
        (out.loss * targets).backward()
        for handle in handles:
            handle.remove()
        for name, output in outputs.items():
            g = output.grad.reshape(-1, output.shape[-1]).double()
            expected[name] = expected[name] + (g.square().sum(0) if name in heads else g.T @ g)
    model.zero_grad()
    for limit in (1 << 30, 1):
        grams = dict(gradient_grams(model, names, data, None, 3, limit, diagonal=heads))
        for name in names:
            scale = float(expected[name].abs().max())
            torch.testing.assert_close(grams[name], expected[name], rtol=1e-3, atol=1e-5 * scale, msg=name)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_few_tokens_are_warned_of() -> None:
    model = random_model("llama")
    few = create_method("svd-llm", {"samples": 1}).fit(model, RandomData())
    assert "fewer than the 96 inputs" in few.meta["warnings"][0]
    many = create_method("svd-llm").fit(model, RandomData(40))
    assert "warnings" not in many.meta
    assert many.meta["calibration"]["examples"] == 40
    names = [matrix.name for matrix in matrices(model)]
    assert next(input_moments(model, names, RandomData(40), 256))[1].tokens == many.meta["calibration"]["tokens"]
