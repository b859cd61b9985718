"""Nothing is trained: the compressed model itself is measured."""

from __future__ import annotations

from torch import nn

from ..base import Trainer
from .base import Phase, Recovery, recoveries


@recoveries.register("none")
class NoRecovery(Recovery):
    """Leaves the model as compression left it; a sweep then has no recover stage."""

    trains = False
    trains_sharded = True

    def recover(self, model: nn.Module, trainer: Trainer, steps: int, lr_scale: float, seed: int) -> list[Phase]:
        """Train nothing, whatever steps are left."""
        return []
