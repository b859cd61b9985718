"""Estimates for Basis Selection: its fit is that of the method that gives the bases, and it trains basis layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ....models.matrices import get_linear, replace_module
from ...base import Compressor
from ...estimates import TRAINED_BYTES, fitter, trained_skeleton, training_checkpoint_bytes
from ...fitted import Factors
from ...ranks.budget import Budget
from .compressor import BasisSelection
from .embedding import BasisEmbedding, DenseEmbedding
from .layer import BasisLinear

_USUAL_RATIO = 2.0
_INDEX_BYTES = 64
"""In a checkpoint of a basis: its number, its slot, running means of a criterion."""


@fitter.register
def _(method: BasisSelection) -> Compressor:
    """Return the method that gives the bases."""
    return method.bases()


@training_checkpoint_bytes.register
def _(method: BasisSelection, model: nn.Module, budget: Budget, sharded: bool = False) -> int:
    """Return the most bytes of a checkpoint: the bases are the fit's, but shards of them lie there too."""
    shape = method.shape(model)
    extra = method.extra_vectors(shape, budget)
    keeps_bases = sharded and method.requirements.trains_sharded
    total = (TRAINED_BYTES if method.train_others else 4) * shape.untouched
    for unit in shape.units:
        trained = unit.max_rank + extra[unit.name] * (unit.cost + 1)
        frozen = unit.max_rank * unit.cost if keeps_bases else 0
        total += TRAINED_BYTES * trained + 4 * frozen + _INDEX_BYTES * unit.max_rank
    return total


@trained_skeleton.register
def _(method: BasisSelection, model: nn.Module) -> nn.Module:
    """Return a copy with basis layers of full rank, with the new vectors of matrices at half their size."""
    trained = copy.deepcopy(model)
    for parameter in trained.parameters():
        parameter.requires_grad_(method.train_others)
    narrow = torch.bfloat16 if method.bases_dtype == "bfloat16" else None
    size = dict[str, Any](device="meta", dtype=torch.float32)
    for matrix in method.targets(model):
        m, n = matrix.out_features, matrix.in_features
        k = min(m, n)
        factors = Factors(torch.empty(m, k, **size), torch.empty(k, n, **size), torch.empty(k, **size))
        share = int(method.additional_share * m * n / (_USUAL_RATIO * (m + n)))
        start = min(method.additional_dimension, share), method.new_vectors, method.seed
        if matrix.embedding:
            dense = DenseEmbedding(trained, matrix)
            rows = BasisEmbedding(factors, dense.embedding, *start, torch.float32, narrow)
            dense.replace(trained, rows.to("meta"))
        else:
            bias = get_linear(trained, matrix.name).bias
            layer = BasisLinear(factors, bias, *start, torch.float32, narrow)
            replace_module(trained, matrix.name, layer.to("meta"))
    return trained
