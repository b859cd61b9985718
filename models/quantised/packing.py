"""Integers of 4 or 8 bits in words of 32 bits, as the format ``pack-quantized`` of compressed-tensors lays them out.

Of a row, 32/bits neighbours share a word, the first in the lowest bits, stored as q + 2^(bits-1); the last word of
a row is filled up with zeros (``compressed_tensors/compressors/pack_quantized/helpers.py``).
"""

from __future__ import annotations

import torch
from torch import Tensor

WORD_BITS = 32


def words_per_row(columns: int, bits: int) -> int:
    """Return the words that a row of so many integers takes."""
    return -(-columns // (WORD_BITS // bits))


def pack(integers: Tensor, bits: int) -> Tensor:
    """Return integers (m, n) of int8, each within ``bits``, as words (m, ⌈n·bits/32⌉) of int32."""
    neighbours = WORD_BITS // bits
    rows, columns = integers.shape
    unsigned = integers.to(torch.int32) + 2 ** (bits - 1)
    padded = torch.nn.functional.pad(unsigned, (0, -columns % neighbours)).view(rows, -1, neighbours)
    shifts = torch.arange(neighbours, dtype=torch.int32, device=integers.device) * bits
    # No two summands have a bit in common, so the sum is their union; the last one may set the sign bit.
    return (padded << shifts).sum(dim=2, dtype=torch.int32)


def unpack(words: Tensor, bits: int, columns: int) -> Tensor:
    """Return the integers (m, columns) in int8 that `pack` made words (m, …) of."""
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32, device=words.device) * bits
    # Shifting a negative word fills in ones from the left, which the mask removes.
    unsigned = (words[:, :, None] >> shifts) & (2**bits - 1)
    return (unsigned.flatten(1)[:, :columns] - 2 ** (bits - 1)).to(torch.int8)
