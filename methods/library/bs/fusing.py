"""Kernels fused by torch.compile, for a model whose ranks shrink while it trains."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ....foundation.errors import UserError
from .layer import BasisLinear

_COMPILERS = "c++ g++ clang++"


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated blocks of a model: members of its outermost module lists that hold basis layers."""
    with_bases: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            with_bases += [block for block in child if any(isinstance(m, BasisLinear) for m in block.modules())]
        else:
            with_bases += blocks(child)
    return with_bases


@contextmanager
def fused(model: nn.Module, backend: str = "inductor") -> Iterator[None]:
    """Run every block of the model compiled while inside.

    All blocks share their compiled code. By default torch.compile takes the shapes of a module's tensors for constants
    and compiles again at every pruning, until it gives up at the eighth; here ranks and sequence lengths become
    variables when they first change, so that a whole run compiles a handful of times.

    Raises:
        UserError: the model is on a CPU and there is no C++ compiler.
    """
    needs_compiler = backend == "inductor" and next(model.parameters()).device.type == "cpu"
    if needs_compiler and not any(shutil.which(name) for name in (os.environ.get("CXX") or _COMPILERS).split()):
        raise UserError("the option compile needs a C++ compiler on a CPU; install g++ or set compile=false")
    compiled = blocks(model)
    with torch._dynamo.config.patch(force_parameter_static_shapes=False, recompile_limit=64):
        for block in compiled:
            block.compile(backend=backend)
        try:
            yield
        finally:
            for block in compiled:
                block._compiled_call_impl = None
