"""Making a parameter shorter in the middle of training, with its gradient and its optimizer's state."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def shrink_parameter(parameter: nn.Parameter, index: Tensor, optimizer: torch.optim.Optimizer | None = None) -> bool:
    """Keep only some entries along the first dimension; what is kept trains on as if nothing had happened.

    The parameter stays the same object, so whoever holds it, an optimizer's groups above all, needs no notice.

    Args:
        parameter: shape (k, …).
        index: int64, shape (kept,), which entries stay and in which order.
        optimizer: whose state of this parameter shrinks along; any wrapper that passes on ``state`` will do.

    Returns:
        False, with nothing changed, where that is impossible: the parameter is sharded, or the optimizer keeps
        something that belongs to no single entry (states quantised in blocks, factored second moments), or somebody
        still holds the graph of an earlier step (its loss, say), which remembers the old shape.
    """
    if type(parameter.data) is not Tensor:
        return False
    state = optimizer.state.get(parameter, {}) if optimizer is not None else {}
    shrinking = {key for key, value in state.items() if isinstance(value, Tensor) and value.shape == parameter.shape}
    for key, value in state.items():
        plain = value.numel() == 1 if isinstance(value, Tensor) else value is None or isinstance(value, int | float)
        sliced = type(value) is Tensor and value.is_floating_point()  # other types keep blocks of entries together
        if (key in shrinking and not sliced) or not (key in shrinking or plain):
            return False
    whole, gradient = parameter.data, parameter.grad
    with torch.no_grad():
        parameter.grad = None
        parameter.data = whole[index]
        if _remembers_old_shape(parameter):
            parameter.data, parameter.grad = whole, gradient
            return False
        if gradient is not None:
            parameter.grad = gradient[index]
        for key in shrinking:
            state[key] = state[key][index.to(state[key].device)]
    return True


def _remembers_old_shape(parameter: nn.Parameter) -> bool:
    # The node that accumulates a leaf's gradient lives as long as a graph with it, and checks against its first shape.
    if not parameter.requires_grad:
        return False
    try:
        with torch.enable_grad():
            torch.autograd.grad(parameter.sum(), parameter)
    except RuntimeError:
        return True
    return False
