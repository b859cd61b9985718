"""Every parameter of the compressed model is trained."""

from __future__ import annotations

from torch import nn

from ..base import Trainer
from .base import Phase, Recovery, count_trained, recoveries


@recoveries.register("full")
class Full(Recovery):
    """The protocol of the Basis Selection paper (arXiv 2405.15877): factors, norms and embeddings, all of them."""

    trains_sharded = True

    def recover(self, model: nn.Module, trainer: Trainer, steps: int, lr_scale: float, seed: int) -> list[Phase]:
        """Train in place, see `Recovery.recover`."""
        trained = count_trained(model)
        return [Phase("all parameters", trained, trainer.train(model, steps, lr_scale))]
