"""KFAC-SVD's clipping and trimming of gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.collection import gradient_grams
from lowrank_bench.methods.calibration.moments import GradientRule
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.models.architectures import random_model


def gradients(seed: int) -> tuple[Tensor, Tensor]:
    """Gradients (3, 16, 5) of very different sizes, some zero, and a mask with padding on the right."""
    generator = torch.Generator().manual_seed(seed)
    sizes = 10 ** (4 * torch.rand(3, 16, 1, generator=generator) - 2)
    values = sizes * torch.randn(3, 16, 5, generator=generator)
    values[:, ::5] = 0
    return values, torch.arange(16) < torch.tensor([[16], [9], [12]])


@pytest.mark.parametrize("clip", [1.5, 10.0])
@pytest.mark.parametrize("seed", range(3))
def test_norms_lie_in_the_range_and_directions_stay(clip: float, seed: int) -> None:
    original, mask = gradients(seed)
    clipped = GradientRule(clip=clip).apply(original, mask)
    before = original[mask]
    assert clipped.shape == before.shape
    norms = torch.where(mask, original.norm(dim=-1), 0)
    means = (norms.sum(1) / (norms > 0).sum(1))[:, None].expand_as(mask)[mask]
    zero = before.norm(dim=-1) == 0
    assert torch.equal(clipped[zero], before[zero])
    own = clipped[~zero].norm(dim=-1)
    assert (own >= means[~zero] / clip * (1 - 1e-5)).all()
    assert (own <= means[~zero] * clip * (1 + 1e-5)).all()
    cosine = torch.nn.functional.cosine_similarity(clipped[~zero], before[~zero])
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    inside = (before.norm(dim=-1) >= means / clip) & (before.norm(dim=-1) <= means * clip)
    torch.testing.assert_close(clipped[inside], before[inside])


@pytest.mark.parametrize("size", [0.0, 1e-9, 3e-8])
def test_rounding_errors_are_not_scaled_up(size: float) -> None:
    """A first token's queries have no gradient, but products in another order leave some digits."""
    original, mask = gradients(2)
    original[:, 0] = size * original.norm(dim=-1).amax(1, keepdim=True)
    clipped = GradientRule(clip=1.5).apply(original, mask)
    exact = original.clone()
    exact[:, 0] = 0
    torch.testing.assert_close(clipped, GradientRule(clip=1.5).apply(exact, mask), rtol=1e-5, atol=1e-5)


def test_trimming_leaves_out_the_ends_of_each_example() -> None:
    original = torch.arange(48.0).reshape(3, 16, 1)
    mask = gradients(0)[1]
    trimmed = GradientRule(trim=0.125).apply(original, mask).flatten().tolist()
    assert trimmed == [*range(2, 14), *range(17, 24), *range(33, 43)]


def test_no_rule_changes_nothing() -> None:
    original, mask = gradients(1)
    assert torch.equal(GradientRule().apply(original, mask), original[mask])


@pytest.mark.parametrize("architecture", ["llama", "opt"])
def test_the_options_reach_the_statistics(architecture: str) -> None:
    model, data = random_model(architecture), RandomData()
    name = next(n for n, _ in model.named_modules() if n.endswith("q_proj"))
    rules: dict[str, Any] = {"plain": GradientRule(), "clip": GradientRule(clip=1.1), "trim": GradientRule(trim=0.25)}
    grams = {key: dict(gradient_grams(model, [name], data, None, rule=rule))[name] for key, rule in rules.items()}
    assert not torch.allclose(grams["plain"], grams["clip"])
    assert float(grams["trim"].trace()) < float(grams["plain"].trace())
    alone = {key: dict(gradient_grams(model, [name], data, None, 1, rule=rule))[name] for key, rule in rules.items()}
    for key, gram in grams.items():
        torch.testing.assert_close(alone[key], gram, rtol=1e-3, atol=1e-5 * float(gram.abs().max()))


def test_defaults_name_no_new_option_in_a_stages_key() -> None:
    """Stages of before are still these, and svd-llm's two-sided fit is io-svd's."""
    method = create_method("io-svd")
    assert not {"clip", "trim", "embeddings"} & set(method.model_dump())
    assert method.fit_key() == create_method("svd-llm", {"two_sided": True}).fit_key()
    clipped = create_method("io-svd", {"clip": 10, "trim": 0.125})
    assert clipped.fit_key() == method.fit_key() | {"clip": 10.0, "trim": 0.125}
    with pytest.raises(UserError, match=r"option trim=0\.5"):
        create_method("io-svd", {"trim": 0.5})
