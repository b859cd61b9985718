"""Rounding a model: its weights become what integers and scales stand for, and the packed tensors are returned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...foundation.errors import UserError
from ...foundation.finite import all_finite
from ..embedding import LowRankEmbedding
from ..matrices import Matrix, embedding_matrix, low_rank_layers, matrices
from .packing import pack
from .rounding import from_groups, group_for, round_factors, round_groups
from .scheme import FACTORS, Scheme

PACKED, SCALE, SHAPE = "weight_packed", "weight_scale", "weight_shape"
"""Tensors of a dense matrix in a packed file, named as compressed-tensors does."""
FACTOR_SCALE = "lr_scale"
"""Scales (r,) of a factorised module, beside its integers ``lr_a`` (r, n) and ``lr_b`` (m, r)."""
CORRECTION_A, CORRECTION_B = "correction_a", "correction_b"
"""Factors A (r, n) and B (m, r) of what is added to a rounded dense matrix."""
CORRECTION_DTYPE = torch.bfloat16

Corrections = Mapping[str, tuple[Tensor, Tensor]]
"""A (r, n) and B (m, r) by the name of a dense matrix."""


def dense_matrices(model: nn.Module, scheme: Scheme) -> list[Matrix]:
    """Return the dense matrices of a model that a scheme rounds; the embedding, where it is among them, comes last.

    Raises:
        UserError: the embedding is to be rounded and does more than look rows up.
    """
    layers = matrices(model, required=False)
    if not scheme.embeddings or any(isinstance(layer, LowRankEmbedding) for layer in low_rank_layers(model).values()):
        return layers
    return [*layers, embedding_matrix(model)]


@torch.no_grad()
def quantise(model: Any, scheme: Scheme, corrections: Corrections | None = None) -> dict[str, Tensor]:
    """Round a model's matrices in place to what their integers stand for, and add corrections.

    Args:
        model: a transformers model, dense or factorised; parameters keep their dtype, to which values are rounded.
        scheme: what to round.
        corrections: of dense matrices; they are stored in `CORRECTION_DTYPE`, and the sum is of what is stored.

    Returns:
        All tensors of the packed model by name, each parameter once: integers and scales, and the others as they are.

    Raises:
        UserError: weights that are not finite (names the matrix), or factors in other than 8 bits.
    """
    packed: dict[str, Tensor] = {}
    rounded: set[int] = set()
    layers = low_rank_layers(model)
    if layers and scheme.bits != FACTORS.bits:
        raise UserError(f"factors are stored in {FACTORS.bits} bits and not in {scheme.bits}; ask for --bits 8")
    for name, layer in layers.items():
        if layer.source is None:
            users = {name: layer} | {other: used for other, used in layers.items() if used.source is layer}
            packed |= _round_factors(name, users)
            rounded |= {id(layer.lr_a), *(id(used.lr_b) for used in users.values())}
    for matrix in dense_matrices(model, scheme):
        weight = model.get_submodule(matrix.name).weight
        _check_finite(f"{matrix.name}.weight", weight)
        group = group_for(matrix.in_features, scheme.group)
        integers, scales = round_groups(weight, scheme.bits, group)
        rounded_weight = from_groups(integers, scales, group)
        if corrections and matrix.name in corrections:
            a, b = (factor.to(weight.device, CORRECTION_DTYPE) for factor in corrections[matrix.name])
            rounded_weight += b.float() @ a.float()
            packed |= {f"{matrix.name}.{CORRECTION_A}": a, f"{matrix.name}.{CORRECTION_B}": b}
        weight.copy_(rounded_weight)
        packed |= {
            f"{matrix.name}.{PACKED}": pack(integers, scheme.bits),
            f"{matrix.name}.{SCALE}": scales,
            f"{matrix.name}.{SHAPE}": torch.tensor(weight.shape, dtype=torch.int64),
        }
        rounded.add(id(weight))
    return packed | _rest(model, rounded)


def _round_factors(owner: str, users: dict[str, Any]) -> dict[str, Tensor]:
    """Round a first factor and the second factors of all modules that use it, in place."""
    first = users[owner].lr_a
    for name, tensor in [(f"{owner}.lr_a", first), *((f"{name}.lr_b", layer.lr_b) for name, layer in users.items())]:
        _check_finite(name, tensor)
    factors = round_factors(first, [layer.lr_b for layer in users.values()])
    first.copy_(factors.first())
    packed = {f"{owner}.lr_a": factors.a}
    for index, (name, layer) in enumerate(users.items()):
        layer.lr_b.copy_(factors.second(index))
        packed |= {f"{name}.lr_b": factors.b[index], f"{name}.{FACTOR_SCALE}": factors.scales[index]}
    return packed


def _rest(model: Any, rounded: set[int]) -> dict[str, Tensor]:
    """Return what a checkpoint holds beside the rounded tensors, tied ones once."""
    saved = model.state_dict().keys()
    tensors, seen = {}, set(rounded)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved and id(tensor) not in seen:
            seen.add(id(tensor))
            tensors[name] = tensor.detach()
    return tensors


def _check_finite(name: str, tensor: Tensor) -> None:
    if not all_finite(tensor):
        raise UserError(f"the tensor {name} holds NaN or infinity and cannot be rounded; make the checkpoint again")
