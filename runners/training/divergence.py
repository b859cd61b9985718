"""A training whose loss is no longer finite."""

from __future__ import annotations

from ...foundation.errors import UserError


class Diverged(UserError):
    """Raised where a training's loss becomes infinite or NaN.

    It ends a run, but for a learning rate of ``--tune``, which is then one that is not chosen.

    Args:
        sentence: which training, at which step, and what to do.
        steps, tokens: optimizer steps done, and tokens that they read.
    """

    def __init__(self, sentence: str, steps: int, tokens: int) -> None:
        super().__init__(sentence)
        self.steps, self.tokens = steps, tokens
