"""A last pruning under a rank policy of its own: the model with basis layers cut further, and what a policy sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from ....foundation.errors import UserError
from ...base import CalibrationData
from ...ranks.policies.base import Metric
from ...ranks.probe import PROBE_BATCH, Examples
from .layer import BasisLinear

MaskAt = Callable[[str, int], Tensor]
"""Which bases of a named layer survive at a rank (new vectors included), shape (kept,), bool."""


class BasisProbe:
    """Evaluates prunings of a model of basis layers in place; the layers are left as they were.

    The twin of `methods.ranks.probe.Probe`, which truncates dense matrices.

    Args:
        model: the model that holds the layers.
        layers: by name.
        mask_at: the bases that survive.
        data: task data; never the test split.
        samples: examples per evaluation.
        metric: see `methods.ranks.probe.Examples`.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, BasisLinear],
        mask_at: MaskAt,
        data: CalibrationData | None,
        samples: int,
        metric: Metric,
    ) -> None:
        if data is None:
            raise UserError("the final policy asks for the model's loss; add --task, such as --task math")
        self.model, self.layers, self.mask_at = model, layers, mask_at
        self.examples = Examples(data, samples, PROBE_BATCH, model, metric)

    def loss(self, ranks: Mapping[str, int]) -> float:
        """Return the mean loss, or the error rate, with the named layers pruned to these ranks."""
        saved: list[tuple[BasisLinear, tuple[Tensor, Tensor, Tensor, Tensor]]] = []
        try:
            for name, rank in ranks.items():
                layer = self.layers[name]
                # `prune` makes new tensors and leaves these as they are, so references are enough to go back.
                saved.append((layer, (layer.left, layer.right, layer.kept, layer.slots)))
                layer.prune(self.mask_at(name, rank))
            return self.examples.loss(self.model)
        finally:
            for layer, buffers in saved:
                layer.left, layer.right, layer.kept, layer.slots = buffers
