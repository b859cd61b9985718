"""Properties of symmetric rounding: error bounds, values that are exact, zeros, packing."""

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32

from lowrank_bench.models.quantised.packing import pack, unpack, words_per_row
from lowrank_bench.models.quantised.rounding import (
    from_groups,
    group_count,
    group_for,
    largest_integer,
    round_factors,
    round_groups,
)

SHAPES = [(1, 1), (3, 32), (5, 33), (16, 128), (7, 300)]


def weights(shape, seed=0, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-6, 0.02, 300.0])
def test_no_error_exceeds_half_a_scale(shape, bits, scale):
    weight, group = weights(shape, scale=scale), group_for(shape[1])
    integers, scales = round_groups(weight, bits, group)
    assert scales.shape == (shape[0], group_count(shape[1], group))
    assert scales.dtype == torch.bfloat16
    assert integers.abs().max() == largest_integer(bits)
    half = scales.float().repeat_interleave(group, 1)[:, : shape[1]] / 2
    assert ((from_groups(integers, scales, group) - weight).abs() <= half * (1 + 1e-6)).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_again_changes_nothing(bits):
    for seed in range(20):
        integers, scales = round_groups(weights((9, 200), seed), bits, 128)
        again, scales_again = round_groups(from_groups(integers, scales, 128), bits, 128)
        assert torch.equal(again, integers)
        assert torch.equal(scales_again, scales)


@pytest.mark.parametrize("bits", [4, 8])
def test_multiples_of_a_power_of_two_are_exact(bits):
    largest = largest_integer(bits)
    weight = torch.arange(-largest, largest + 1).repeat(3, 1) * torch.tensor([[0.25], [2.0**-9], [64.0]])
    integers, scales = round_groups(weight, bits, 1024)
    assert torch.equal(from_groups(integers, scales, 1024), weight)


def test_zeros_stay_zeros_without_nan():
    weight = torch.zeros(4, 256)
    weight[0, :128] = 1.0
    integers, scales = round_groups(weight, 4, 128)
    assert torch.equal(from_groups(integers, scales, 128)[1:], weight[1:])
    assert (scales[1:] == 1).all()
    factors = round_factors(torch.zeros(2, 5), [torch.ones(3, 2)])
    assert torch.equal(factors.second(0) @ factors.first(), torch.zeros(3, 5))
    assert factors.scales[0].isfinite().all()


@pytest.mark.parametrize("rank", [1, 4, 17])
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e3])
def test_factors_are_within_half_a_step_of_each_component(rank, scale):
    a, b = weights((rank, 50), 1, scale), weights((30, rank), 2)
    rounded = round_factors(a, [b])
    assert rounded.scales[0].shape == (rank,)
    assert rounded.a.dtype == rounded.b[0].dtype == torch.int8
    product = rounded.second(0) @ rounded.first()
    stored = (rounded.b[0].double() * rounded.scales[0].double()) @ rounded.a.double()
    assert torch.allclose(product.double(), stored, rtol=1e-5, atol=1e-6 * float(stored.abs().max()))
    # |ΔA| ≤ s_A/2 and |ΔB| ≤ s_B/2, each entry of a component's outer product by itself.
    step_a = a.abs().amax(1) / 127
    step_b = rounded.scales[0].float() / step_a
    assert ((rounded.a * step_a[:, None] - a).abs() <= step_a[:, None] / 2 * (1 + 1e-5)).all()
    assert ((rounded.b[0] * step_b - b).abs() <= step_b / 2 * (1 + 1e-5)).all()
    assert (product - b @ a).norm() / (b @ a).norm() < 0.02


def test_factors_that_were_rounded_stay():
    for seed in range(20):
        once = round_factors(weights((6, 40), seed), [weights((30, 6), seed + 50), weights((11, 6), seed + 99)])
        again = round_factors(once.first(), [once.second(0), once.second(1)])
        assert torch.equal(once.a, again.a)
        for index in (0, 1):
            assert torch.equal(once.b[index], again.b[index])
            assert torch.equal(once.scales[index], again.scales[index])


def test_first_factors_are_exact_in_bfloat16():
    first = round_factors(weights((6, 40)), [weights((30, 6))]).first()
    assert torch.equal(first.bfloat16().float(), first)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_words_are_those_of_compressed_tensors(shape, bits):
    integers, _ = round_groups(weights(shape), bits, group_for(shape[1]))
    words = pack(integers, bits)
    assert words.shape == (shape[0], words_per_row(shape[1], bits))
    assert torch.equal(words, pack_to_int32(integers, bits))
    assert torch.equal(unpack(words, bits, shape[1]), integers)
    assert torch.equal(unpack_from_int32(words, bits, torch.Size(shape)), integers)
