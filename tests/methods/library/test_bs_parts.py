"""Basis Selection's rules on tensors and its layer."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lowrank_bench.methods.library.bs.layer import BasisLinear, Start
from lowrank_bench.methods.library.bs.pruning import (
    Schedule,
    compensated_threshold,
    keep_largest,
    lr_factor,
    pruning_steps,
    target_share,
)
from lowrank_bench.methods.library.svd import SVD

_scores = st.lists(st.integers(0, 50), min_size=1, max_size=30).map(lambda values: torch.tensor(values).float())


@given(_scores, st.floats(0.05, 0.999))
def test_the_smallest_prefix_that_reaches_the_share_survives_with_its_ties(scores: Tensor, theta: float) -> None:
    mask = keep_largest(scores, theta)
    total = float(scores.sum())
    assert mask.any()
    if total == 0:
        assert mask.all()
        return
    ordered = sorted(scores.tolist(), reverse=True)
    k = next(k for k in range(1, len(ordered) + 1) if sum(ordered[:k]) >= theta * total * (1 - 1e-12))
    assert mask.tolist() == [score >= ordered[k - 1] for score in scores.tolist()]


@given(_scores)
def test_a_share_of_one_prunes_only_exact_zeros(scores: Tensor) -> None:
    expected = scores > 0 if scores.any() else torch.ones_like(scores, dtype=torch.bool)
    assert torch.equal(keep_largest(scores, 1.0), expected)


@pytest.mark.parametrize("schedule", ["exponential", "linear"])
@pytest.mark.parametrize("keep", [0.5, 0.2, 0.1, 0.05])
@pytest.mark.parametrize("prunings", [1, 10, 100])
def test_compensated_prunings_arrive_at_the_one_shot_rank(schedule: Schedule, keep: float, prunings: int) -> None:
    """On a 512-long heavy-tailed spectrum a constant threshold ends up to twice too high; the compensated does not."""
    s = torch.arange(1, 513).double() ** -0.7
    left, product = s, 1.0
    for pruning in range(1, prunings + 1):
        share = target_share(keep, pruning, prunings, schedule)
        after = left[keep_largest(left, compensated_threshold(share, product))]
        assert len(after) <= len(left)
        left, product = after, product * float(after.sum() / left.sum())
    one_shot = int(keep_largest(s, keep).sum())
    assert left.sum() >= keep * s.sum() * (1 - 1e-9)
    assert one_shot <= len(left) <= one_shot + 1
    torch.testing.assert_close(product, float(left.sum() / s.sum()))


def test_schedules_end_at_the_kept_share() -> None:
    for schedule in ("exponential", "linear"):
        shares = [target_share(0.3, p, 7, schedule) for p in range(8)]  # type: ignore[arg-type]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] == 1.0
        assert math.isclose(shares[-1], 0.3)
    assert math.isclose(target_share(0.25, 1, 2), 0.5)
    assert math.isclose(target_share(0.25, 1, 2, "linear"), 0.625)
    assert compensated_threshold(0.5, 0.4) == 1.0
    assert compensated_threshold(0.5, 0.0) == 1.0


@given(st.integers(0, 20), st.integers(0, 50), st.integers(1, 120))
def test_prunings_are_spread_over_the_steps_after_keeping(keep: int, steps: int, prunings: int) -> None:
    due = pruning_steps(keep, steps, prunings)
    assert len(due) == prunings
    assert due == sorted(due)
    assert due[0] == keep
    assert due[-1] <= max(keep, keep + steps - 1)
    gaps = {b - a for a, b in pairwise(due)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_learning_rate_factor_is_that_of_the_run_scripts() -> None:
    assert round(lr_factor(0.5, 3), 3) == 1.130
    assert round(lr_factor(0.1, 3), 3) == 1.585
    assert lr_factor(1.0, 3) == 1.0
    assert math.isclose(lr_factor(0.999999, 3), 1.0, abs_tol=1e-6)


@pytest.mark.parametrize(("keep", "epochs"), [(0.5, 3.0), (0.1, 3.0), (0.02, 5.0)])
def test_learning_rate_factor_is_a_mean_over_training(keep: float, epochs: float) -> None:
    """Numerically: sqrt(1/k_t) is 1 in the first epoch, then k_t falls exponentially to K."""
    t = (torch.arange(200_000).double() + 0.5) / 200_000 * epochs
    shares = torch.where(t < 1, 1.0, keep ** ((t - 1) / (epochs - 1)))
    assert math.isclose(lr_factor(keep, epochs), float(shares.rsqrt().mean()), rel_tol=1e-6)


def layer(
    m: int = 9, n: int = 7, extra: int = 2, start: Start = "zero", dtype: torch.dtype = torch.float64
) -> BasisLinear:
    generator = torch.Generator().manual_seed(m * n)
    weight = torch.randn(m, n, generator=generator, dtype=torch.float64)
    bias = torch.randn(m, generator=generator, dtype=torch.float64)
    return BasisLinear(SVD().decompose(weight), bias.to(dtype), extra, start, 5, dtype)


@pytest.mark.parametrize("start", ["zero", "top"])
@pytest.mark.parametrize("extra", [0, 1, 3])
def test_the_layer_starts_as_the_dense_one(start: Start, extra: int) -> None:
    generator = torch.Generator().manual_seed(63)
    weight = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    bias = torch.randn(9, generator=generator, dtype=torch.float64)
    module = layer(extra=extra, start=start)
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(module(x), torch.nn.functional.linear(x, weight, bias))
    torch.testing.assert_close(module.dense_weight(), weight)
    assert {name for name, _ in module.named_parameters()} == {"weight_root", "extra_left", "extra_right", "bias"}
    assert {name for name, _ in module.named_buffers()} == {"left", "right", "kept", "slots"}
    torch.testing.assert_close(module.left.norm(dim=0), torch.ones(len(module.kept), dtype=torch.float64))
    if start == "zero":
        assert not module.extra_left.any()


def disturb(module: BasisLinear) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (module.weight_root, module.extra_left, module.extra_right):
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


@settings(deadline=None, max_examples=30)
@given(mask=st.lists(st.booleans(), min_size=7, max_size=7), extra=st.integers(0, 3))
def test_a_pruned_layer_merges_into_factors_of_the_same_function(mask: list[bool], extra: int) -> None:
    module = layer(extra=extra)
    disturb(module)
    module.prune(torch.tensor(mask))
    rank = min(module.rank, 7)
    assert rank <= sum(mask) + extra
    assert (module.singular_values() >= 0).all()
    if rank:
        u, s, vt = module.merged(rank)
        x = torch.randn(5, 7, dtype=torch.float64)
        assert module.bias is not None
        torch.testing.assert_close(torch.nn.functional.linear(x, u * s @ vt, module.bias), module(x))
        torch.testing.assert_close(s, torch.linalg.svdvals(module.dense_weight())[:rank], atol=1e-9, rtol=1e-9)


def test_pruned_bases_get_no_gradient_and_stay_away() -> None:
    module = layer()
    disturb(module)
    first = torch.tensor([True, False, True, True, False, True, True])
    module.prune(first)
    module(torch.randn(3, 7, dtype=torch.float64)).square().sum().backward()
    gradient = module.weight_root.grad
    assert gradient is not None
    assert not gradient[~first].any()
    assert gradient[first].all()
    module.prune(torch.tensor([True, False, True, True, True]))
    assert module.kept.tolist() == [0, 3, 5, 6]
    assert module.left.shape == (9, 4)


def test_new_vectors_depend_on_their_seed_alone() -> None:
    before = torch.get_rng_state()
    first, second = layer(), layer()
    assert torch.equal(first.extra_right, second.extra_right)
    assert torch.equal(torch.get_rng_state(), before)


def test_dead_bases_are_finite() -> None:
    weight = torch.zeros(4, 3)
    weight[0, 0] = 2.0
    module = BasisLinear(SVD().decompose(weight), None, 1, "zero", 0, torch.float32)
    torch.testing.assert_close(module.dense_weight(), weight)
    module(torch.ones(1, 3)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in module.parameters())
