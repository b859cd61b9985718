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
    for unit in method.shape(model).units:
        dense, size = get_linear(model, unit.name), dict[str, Any](device="meta", dtype=torch.float32)
        left = torch.empty(dense.out_features, unit.max_rank, **size)
        right = torch.empty(unit.max_rank, dense.in_features, **size)
        factors = Factors(left, right, torch.empty(unit.max_rank, **size))
        share = int(method.additional_share * unit.parameters / (_USUAL_RATIO * unit.cost))
        extra = min(method.additional_dimension, share)
        layer = BasisLinear(factors, dense.bias, extra, method.new_vectors, method.seed, torch.float32, narrow)
        replace_module(trained, unit.name, layer.to("meta"))
    return trained
