"""Truncated SVD: Eckart-Young, on one matrix and in a model."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods import fitted
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Fitted
from lowrank_bench.methods.library.svd import SVD
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear


@settings(deadline=None, max_examples=50)
@given(m=st.integers(1, 16), n=st.integers(1, 16), seed=st.integers(0, 999))
def test_error_is_the_tail_of_squared_singular_values(m: int, n: int, seed: int) -> None:
    weight = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = SVD().decompose(weight)
    reference = torch.linalg.svdvals(weight)
    torch.testing.assert_close(factors.spectrum, reference)
    for rank in range(1, min(m, n) + 1):
        a, b = factors.truncate(rank)
        assert (a.shape, b.shape) == ((rank, n), (m, rank))
        torch.testing.assert_close(
            (weight - b @ a).square().sum(), reference[rank:].square().sum(), atol=1e-9, rtol=1e-7
        )
        torch.testing.assert_close(a.square().sum(), b.square().sum())  # √S in both


def test_compress_installs_the_best_approximation_of_each_matrix() -> None:
    dense, model = random_model("gpt-neox"), random_model("gpt-neox")
    method = create_method("svd")
    report = method.compress(model, method.fit(dense, None), Budget(1.8), None)
    for name, rank in report.ranks.items():
        weight, layer = get_linear(dense, name).weight.detach(), model.get_submodule(name)
        assert isinstance(layer, LowRankLinear)
        u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        torch.testing.assert_close(layer.dense_weight().double(), best, rtol=1e-4, atol=1e-4 * float(s[0]))


def test_guard_keeps_matrices_dense_and_without_it_all_are_factorised() -> None:
    for guard in (True, False):
        dense, model = random_model("llama"), random_model("llama")
        method = create_method("svd", {"guard": guard, "policy": "energy"})
        report = method.compress(model, method.fit(dense, None), Budget(1.1, guard), None)
        assert bool(report.dense) == guard
        assert report.ratio >= 1.1
        for name in report.dense:
            assert torch.equal(get_linear(model, name).weight, get_linear(dense, name).weight)


def test_head_option_leaves_the_head() -> None:
    model = random_model("llama")
    method = create_method("svd", {"head": False})
    report = method.compress(model, method.fit(model, None), Budget(2.0), None)
    assert "lm_head" not in {**report.ranks, **report.dense}
    assert isinstance(model.lm_head, torch.nn.Linear)
    assert report.ratio >= 2.0


def test_a_weight_that_is_not_finite_is_named() -> None:
    model = random_model("opt")
    with torch.no_grad():
        model.model.decoder.layers[1].fc1.weight[0, 0] = float("inf")
    with pytest.raises(UserError, match=r"model\.decoder\.layers\.1\.fc1 holds NaN or infinite"):
        create_method("svd").fit(model, None)


def test_factors_that_go_to_disk_as_they_come_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several files, with little in memory, each matrix readable while the fit goes on."""
    model, method = random_model("qwen2"), create_method("svd", {"policy": "sensitivity(step=0.3)", "probe_samples": 4})
    whole = method.fit(model, RandomData())
    monkeypatch.setattr(fitted, "BUFFER_BYTES", 20_000)
    parts = method.fit(model, RandomData(), tmp_path / "fit")
    parts.save(tmp_path / "fit")
    assert len(list((tmp_path / "fit").glob("factors-*.safetensors"))) > 3
    for fit in (parts, Fitted.load(tmp_path / "fit")):
        assert fit.meta == whole.meta
        for matrix in method.targets(model):
            for name, value in whole.factors(matrix.name).tensors().items():
                other = getattr(fit.factors(matrix.name), name)
                assert value is other is None or torch.equal(value, other)
        assert {k: v.tolist() for k, v in fit.evidence().items()} == {
            k: v.tolist() for k, v in whole.evidence().items()
        }
    with pytest.raises(ValueError, match="cannot be saved"):
        parts.save(tmp_path / "elsewhere")


def test_a_damaged_fit_is_named(tmp_path: Path) -> None:
    create_method("svd").fit(random_model("llama"), None).save(tmp_path)
    file = tmp_path / "factors-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=r"is damaged .*; delete that folder and run again"):
        Fitted.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svd", {"polcy": "energy"}, "no option 'polcy'; did you mean 'policy'"),
        ("svd", {"zzz": 1}, "no option 'zzz'; allowed: embeddings, guard, head, policy"),
        ("bs", {"prunings": 0}, "prunings=0 is not usable: .*greater than or equal to 1"),
        ("bs", {"criterion": "magic"}, "criterion='magic' is not usable: .*'s', 's2', 'taylor' or 'hessian'"),
        ("aa", {"refine_lr": 1e38}, r"refine_lr=1e\+38 is not usable: input should be less than or equal to 1e\+36"),
        ("fwsvd", {"axis": "both"}, "axis='both' is not usable: .*'in' or 'out'"),
        ("fwsvd", {"samples": "many"}, "samples='many' is not usable"),
        ("sdv", {}, "unknown method 'sdv'; did you mean 'svd'"),
    ],
)
def test_wrong_options_are_explained(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        create_method(name, options)


@pytest.mark.parametrize(
    ("name", "options"), [("svd", {"policy": "energi"}), ("bs", {"start": "sdv"}), ("bs", {"start": "bs"})]
)
def test_options_that_name_other_parts_are_checked_when_made(name: str, options: dict[str, str]) -> None:
    message = r"unknown (policy 'energi'; did you mean 'energy'|method 'sdv')|start='bs' is not usable: .*such as 'svd'"
    with pytest.raises(UserError, match=message):
        create_method(name, options)
