"""Estimates of memory and disk for plans: what holds for every method, and where a method can say that it differs.

A method needs none of this to work. One that takes much more or less than the default registers its own beside its
class: ``@decompose_bytes.register`` over ``def _(method: Mine, m: int, n: int) -> int``. All take a model on the meta
device as well as a real one.
"""

from __future__ import annotations

from functools import singledispatch

from torch import nn

from ..models.matrices import model_size
from .base import Compressor
from .groups import Group
from .ranks.budget import Budget
from .working import svd_bytes

TRAINED_BYTES = 3 * 4
"""On disk of a parameter in training: float32, with two moments of the optimizer."""


@singledispatch
def decompose_bytes(method: Compressor, m: int, n: int) -> int:
    """Return at most how much memory `decompose` takes for an (m, n) matrix, beside it and its statistic.

    By default what a float32 SVD takes.
    """
    return svd_bytes(m, n)


@singledispatch
def regular_bytes(method: Compressor, m: int, n: int) -> int:
    """Return how much memory `decompose` takes where the statistic has full rank; by default its bound."""
    return decompose_bytes(method, m, n)


@singledispatch
def statistic_bytes(method: Compressor, group: Group) -> int:
    """Return the bytes of a group's statistic; vectors count as nothing, which is the default."""
    return 0


@singledispatch
def fitter(method: Compressor) -> Compressor:
    """Return the method whose `fit` this one uses: itself, unless it starts from another's factors."""
    return method


@singledispatch
def calibration_passes(method: Compressor) -> float:
    """Return how many forward passes through the examples of `fit` `compress` computes for each ratio.

    0, the default: it reads no data, or other examples of them, such as a policy that asks the model.
    """
    return 0.0


@singledispatch
def training_checkpoint_bytes(method: Compressor, model: nn.Module, budget: Budget, sharded: bool = False) -> int:
    """Return the most bytes that one checkpoint of the training in `compress_path` takes on disk.

    By default float32 weights and the optimizer's two moments of all of them.

    Args:
        method: one that trains.
        model: the dense model.
        budget: the deepest one.
        sharded: whether a trainer is given that shards.
    """
    return TRAINED_BYTES * model_size(model).parameters


@singledispatch
def trained_skeleton(method: Compressor, model: nn.Module) -> nn.Module:
    """Return the model that is trained in `compress_path`, as it is at the start, on the meta device.

    By default the dense model itself.

    Args:
        method: one that trains.
        model: the dense model on the meta device; is not changed.
    """
    return model
