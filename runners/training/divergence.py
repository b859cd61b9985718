"""A training whose loss or weights are no longer finite."""

from __future__ import annotations

from torch import nn

from ...foundation.errors import UserError
from ...foundation.finite import all_finite


class Diverged(UserError):
    """Raised where a training's loss, or weights, become infinite or NaN.

    It ends a run, but for a learning rate of ``--tune``, which is then one that is not chosen.

    Args:
        sentence: which training, at which step, and what to do.
        steps, tokens: optimizer steps done, and tokens that they read.
    """

    def __init__(self, sentence: str, steps: int, tokens: int) -> None:
        super().__init__(sentence)
        self.steps, self.tokens = steps, tokens


def advice(rate: float) -> str:
    """Return what to do about a training that diverged at a learning rate."""
    return f"lower the learning rate (now {rate:g}) with --lr, or check the training data"


def require_finite(model: nn.Module, after: str, rate: float, steps: int, tokens: int) -> None:
    """Raise `Diverged` where a weight is infinite or NaN: what the last update did, or a merge, shows in no loss.

    Args:
        model: or this process's share of it.
        after: what it was that was trained, and how long, for the sentence.
        rate: the learning rate.
        steps, tokens: that the training took.
    """
    if not all(all_finite(getattr(weight, "_local_tensor", weight).detach()) for weight in model.parameters()):
        raise Diverged(f"the weights are no longer finite after {after}; {advice(rate)}", steps, tokens)
