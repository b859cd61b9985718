"""What a rounded model takes in its packed file, from shapes alone."""

from __future__ import annotations

from torch import nn

from ..matrices import Matrix, low_rank_layers, model_size
from .model import CORRECTION_DTYPE, dense_matrices
from .packing import WORD_BITS, words_per_row
from .rounding import SCALE_DTYPE, group_count, group_for
from .scheme import Scheme

_SCALE_BYTES = SCALE_DTYPE.itemsize
_SHAPE_BYTES = 16  # two numbers in int64


def dense_bytes(matrix: Matrix, scheme: Scheme) -> int:
    """Return the bytes of a dense matrix (m, n): m rows of words, one scale a group, and its shape."""
    groups = group_count(matrix.in_features, group_for(matrix.in_features, scheme.group))
    row = words_per_row(matrix.in_features, scheme.bits) * WORD_BITS // 8 + groups * _SCALE_BYTES
    return matrix.out_features * row + _SHAPE_BYTES


def factor_bytes(rank: int, entries: int, modules: int = 1) -> int:
    """Return the bytes of 8-bit factors.

    Args:
        rank: r.
        entries: of all factors together: r(n + m), or r(n + Σ m) where ``modules`` share the first one.
        modules: how many have scales, r each.
    """
    return entries + modules * rank * _SCALE_BYTES


def correction_bytes(matrix: Matrix, rank: int) -> int:
    """Return the bytes of a dense matrix's correction (m, n): r(m + n) numbers, r no more than its smaller side."""
    if matrix.embedding:
        return 0
    sides = matrix.in_features, matrix.out_features
    return min(rank, *sides) * sum(sides) * CORRECTION_DTYPE.itemsize


def packed_bytes(model: nn.Module, scheme: Scheme, width: int, rank: int = 0) -> int:
    """Return the bytes of all tensors that `model.quantise` returns, without making them.

    Args:
        model: dense or factorised; meta tensors are enough.
        scheme: what is rounded.
        width: bytes of each number that is not rounded.
        rank: of the corrections of dense matrices.
    """
    layers, size, rounded = low_rank_layers(model), 0, 0
    for layer in layers.values():
        entries = layer.lr_b.numel() + (layer.lr_a.numel() if layer.source is None else 0)
        size += factor_bytes(layer.rank, entries)
        rounded += entries
    for matrix in dense_matrices(model, scheme):
        size += dense_bytes(matrix, scheme) + correction_bytes(matrix, rank)
        rounded += matrix.parameters
    return size + (model_size(model).parameters - rounded) * width
