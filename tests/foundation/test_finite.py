"""`all_finite` says what `torch.isfinite` says, and copies nothing."""

import pytest
import torch

from lowrank_bench.foundation.finite import all_finite

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (7, 33), (300, 70), (2, 3, 4)])
def test_one_entry_that_is_no_number_is_seen_anywhere(dtype, shape):
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(numbers)
    for position in {0, numbers.numel() // 2, numbers.numel() - 1}:
        for bad in (torch.nan, torch.inf, -torch.inf):
            damaged = numbers.clone()
            damaged.view(-1)[position] = bad
            assert not all_finite(damaged)
            assert not all_finite(damaged.mT if damaged.ndim > 1 else damaged)
    both = torch.stack([numbers, numbers]).reshape(2, -1)
    both[0, 0], both[1, -1] = torch.inf, torch.nan
    assert not all_finite(both)


def test_the_largest_numbers_and_no_numbers_are_finite():
    for dtype in DTYPES:
        limits = torch.finfo(dtype)
        assert all_finite(torch.tensor([limits.min, limits.max, limits.max, limits.tiny], dtype=dtype))
        assert all_finite(torch.empty(0, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_copied(dtype):
    numbers = torch.zeros(1000, 1000, dtype=dtype)

    def allocated(check):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            check(numbers)
        return sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())

    assert allocated(all_finite) < 10_000
    assert allocated(lambda tensor: tensor.isfinite().all()) > numbers.numel(), "this test would see a copy"
