"""Layers of bases in place of dense ones, and what they are merged into in place of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ....models.layers import LowRankLinear
from ....models.matrices import get_linear, replace_module
from ...fitted import Factors
from .embedding import BasisEmbedding, DenseEmbedding
from .layer import BasisLinear
from .options import BasisSelectionOptions


def put_bases(
    method: BasisSelectionOptions,
    model: nn.Module,
    name: str,
    embedding: DenseEmbedding | None,
    factors: Factors,
    extra: int,
    number: int,
) -> BasisLinear:
    """Replace a linear layer, or the embedding with the head that is tied to it, by a layer of bases.

    Args:
        method: its options.
        model: changed in place.
        name: of the layer.
        embedding: the model's embedding, where it gets bases too.
        factors: the bases.
        extra: how many new vectors.
        number: of the layer, for the seed of its new vectors.
    """
    narrow = torch.bfloat16 if method.bases_dtype == "bfloat16" else None
    start = extra, method.new_vectors, method.seed + number
    if embedding is not None and name == embedding.matrix.name:
        dense_rows = embedding.embedding
        weight, training = dense_rows.weight, dense_rows.training
        rows = BasisEmbedding(factors, dense_rows, *start, torch.promote_types(weight.dtype, torch.bfloat16), narrow)
        embedding.replace(model, rows.to(weight.device).train(training))
        return rows
    dense = get_linear(model, name)
    # promote_types gives float32 for float16; bfloat16 and float32 stay what they are.
    dtype = torch.promote_types(dense.weight.dtype, torch.bfloat16)
    layer = BasisLinear(factors, dense.bias, *start, dtype, narrow).to(dense.weight.device)
    if layer.bias is not None:
        layer.bias.requires_grad_(method.train_others)
    replace_module(model, name, layer.train(dense.training))
    return layer


def put_merged(
    model: nn.Module,
    name: str,
    embedding: DenseEmbedding | None,
    layer: BasisLinear,
    factors: tuple[Tensor, Tensor] | None,
) -> None:
    """Replace a layer of bases by two factors, or by what was there before with its matrix.

    Args:
        model: changed in place.
        name: of the layer.
        embedding: as in `put_bases`.
        layer: of bases, in the model.
        factors: A (r, n) and B (m, r); None for a dense layer.
    """
    if factors is not None:
        factors = factors[0].to(layer.weight_root.dtype), factors[1].to(layer.weight_root.dtype)
    if isinstance(layer, BasisEmbedding):
        assert embedding is not None
        if factors is None:
            embedding.put_back(model, layer.dense_weight(), layer.training)
        else:
            embedding.put_factors(model, *factors, layer.training)
    elif factors is None:
        replace_module(model, name, layer.dense_layer().train(layer.training))
    else:
        bias = None if layer.bias is None else layer.bias.detach()
        replace_module(model, name, LowRankLinear.from_factors(*factors, bias).train(layer.training))
