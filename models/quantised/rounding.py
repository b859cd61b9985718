"""Symmetric rounding to the nearest integer: groups of a dense matrix's rows, and whole components of two factors.

An integer q of b bits lies in ±(2^(b-1) - 1) and encodes q·scale, with a scale in bfloat16. The scale is the largest
magnitude over the largest integer, rounded to the nearest bfloat16: the largest entry then still becomes the largest
integer (127·2^-8 < 1/2), so that no error exceeds half a scale, and rounding what was rounded changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SCALE_DTYPE = torch.bfloat16
GROUP, NARROW_GROUP = 128, 32
"""Columns that share a scale, and in matrices with fewer columns than that."""


def largest_integer(bits: int) -> int:
    """Return the largest integer of a symmetric code: 127 in 8 bits, 7 in 4."""
    return 2 ** (bits - 1) - 1


def group_for(columns: int, asked: int | None = None) -> int:
    """Return how many columns share a scale.

    Args:
        columns: of the matrix.
        asked: by the user; None takes `GROUP`, or `NARROW_GROUP` for narrower matrices.
    """
    return asked or (GROUP if columns >= GROUP else NARROW_GROUP)


def group_count(columns: int, group: int) -> int:
    """Return the scales of one row; the last group may be narrower."""
    return -(-columns // group)


def round_groups(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Round a matrix to integers with one scale for each group of columns of each row.

    Args:
        weight: (m, n), floating-point and finite.
        bits: 2 to 8.
        group: columns that share a scale.

    Returns:
        Integers (m, n) in int8 and scales (m, ⌈n/group⌉) in bfloat16; a group of zeros has scale 1.
    """
    scales = _scales(_magnitudes(weight, group), bits)
    spread = _per_column(scales, weight.shape[1], group)
    return _rounded(weight.float() / spread, bits), scales


def from_groups(integers: Tensor, scales: Tensor, group: int) -> Tensor:
    """Return the float32 matrix (m, n) that integers (m, n) and scales (m, ⌈n/group⌉) stand for."""
    return integers.float() * _per_column(scales, integers.shape[1], group)


@dataclass(frozen=True)
class RoundedFactors:
    """A first factor and the second factors that use it, in 8 bits.

    With ``q_a`` (r, n), ``q_b`` (m, r) and one scale s_k for each component, the matrix is Σ_k s_k q_b[:, k] q_a[k, :]:
    the scale of A's row and that of B's column count only by their product, so r scales are stored and not 2r.

    Attributes:
        a: (r, n), int8.
        b: a second factor (m, r) in int8 for each module that uses ``a``.
        scales: (r,) in bfloat16 for each of them.
        powers: (r,) in float32, powers of two near the scales of A's rows; not stored. They share a scale out between
            the two factors when they are dequantised, exactly.
    """

    a: Tensor
    b: tuple[Tensor, ...]
    scales: tuple[Tensor, ...]
    powers: Tensor

    def first(self) -> Tensor:
        """Return A (r, n) in float32; each entry is an integer times a power of two, which bfloat16 holds too."""
        return self.a.float() * self.powers[:, None]

    def second(self, index: int) -> Tensor:
        """Return a second factor (m, r) in float32, such that its product with `first` is exact."""
        return self.b[index].float() * (self.scales[index].float() / self.powers)


def round_factors(a: Tensor, seconds: Sequence[Tensor], bits: int = 8) -> RoundedFactors:
    """Round two factors, or one that several share, with one scale for each component.

    Args:
        a: first factor (r, n), finite.
        seconds: second factors (m, r), finite; one unless several modules share ``a``.
        bits: of both.

    A component of which one factor is zero gets integers of zero and scale 1.
    """
    largest = largest_integer(bits)
    steps_a = _nonzero(a.float().abs().amax(dim=1)) / largest
    integers, scales = [], []
    for b in seconds:
        steps_b = _nonzero(b.float().abs().amax(dim=0)) / largest
        merged = _nonzero((steps_a * steps_b).to(SCALE_DTYPE))
        scales.append(merged)
        # What rounding the product changed goes into B's step, so that both factors are rounded by their real steps.
        integers.append(_rounded(b.float() / (merged.float() / steps_a), bits))
    powers = torch.exp2(torch.log2(steps_a).round())
    return RoundedFactors(_rounded(a.float() / steps_a[:, None], bits), tuple(integers), tuple(scales), powers)


def _magnitudes(weight: Tensor, group: int) -> Tensor:
    rows, columns = weight.shape
    # Zeros change no largest magnitude.
    padded = torch.nn.functional.pad(weight.float().abs(), (0, -columns % group))
    return padded.view(rows, -1, group).amax(dim=2)


def _scales(magnitudes: Tensor, bits: int) -> Tensor:
    return _nonzero((magnitudes / largest_integer(bits)).to(SCALE_DTYPE))


def _nonzero(values: Tensor) -> Tensor:
    """Return values with 1 in place of 0, by which zeros can be divided."""
    return torch.where(values == 0, torch.ones_like(values), values)


def _per_column(scales: Tensor, columns: int, group: int) -> Tensor:
    return scales.float().repeat_interleave(group, dim=1)[:, :columns]


def _rounded(values: Tensor, bits: int) -> Tensor:
    largest = largest_integer(bits)
    return values.round().clamp(-largest, largest).to(torch.int8)
