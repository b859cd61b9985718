"""Products with some rows or columns of a frozen matrix whose shape has to stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SelectedLinear(torch.autograd.Function):
    """``linear(x, weight.index_select(dimension, index))`` for a weight that needs no gradient.

    What is selected is copied in each direction. Autograd would keep the copy of every layer from forward to
    backward, beside the shares that FSDP2 leaves in this process; so the weight itself is kept, which FSDP2 frees in
    between and gathers again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, index: Tensor, dimension: int) -> Tensor:
        """Map x (..., n) by the selected part (m, n) of a weight to (..., m).

        Args:
            ctx: autograd's.
            x: input.
            weight: whole, frozen.
            index: int64, which rows (dimension 0) or columns (1) are the selected part.
            dimension: 0 or 1.
        """
        ctx.save_for_backward(weight, index)
        ctx.dimension, ctx.dtype = dimension, x.dtype
        return nn.functional.linear(x, weight.index_select(dimension, index))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Return the gradient of x, in its dtype."""
        weight, index = ctx.saved_tensors
        (gradient,) = gradients
        part = weight.index_select(ctx.dimension, index).to(gradient.dtype)
        return (gradient @ part).to(ctx.dtype), None, None, None
