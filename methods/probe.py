"""The loss of a model with some of its matrices truncated, for policies and searches that ask the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.matrices import get_linear
from .base import CalibrationData
from .fitted import Factors, Fitted
from .groups import Group
from .statistics import example_losses


class Probe:
    """Evaluates truncations of a dense model in place, on a fixed set of examples; the model is left as it was.

    Args:
        model: the dense model.
        groups: what can be truncated.
        fitted: the factors.
        data: task data; never the test split.
        samples: examples per evaluation, or None for all.
        batch_size: examples per forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        fitted: Fitted,
        data: CalibrationData,
        samples: int | None,
        batch_size: int = 8,
    ) -> None:
        self.model, self.fitted = model, fitted
        self.groups = {group.name: group for group in groups}
        device = next(model.parameters()).device
        self.batches = [
            {key: value.to(device) for key, value in batch.items()} for batch in data.batches(samples, batch_size)
        ]

    def loss(self, ranks: Mapping[str, int]) -> float:
        """Return the mean loss per example (each its mean over target tokens) with these units cut to these ranks."""
        with self.truncated(ranks):
            return self._mean_loss()

    @contextmanager
    def truncated(self, ranks: Mapping[str, int]) -> Iterator[nn.Module]:
        """Give the model with these units cut to these ranks; their weights and biases come back afterwards."""
        saved: list[tuple[nn.Linear, Tensor, nn.Parameter | None]] = []
        try:
            for name, rank in ranks.items():
                for layer, weight, offset in self._cut(self.groups[name], self.fitted.factors(name), rank):
                    saved.append((layer, layer.weight.data, layer.bias))
                    layer.weight.data = weight.to(layer.weight)
                    if offset is not None:
                        whole = offset if layer.bias is None else layer.bias.detach() + offset
                        layer.bias = nn.Parameter(whole.to(layer.weight), requires_grad=False)
            yield self.model
        finally:
            for layer, data, bias in reversed(saved):
                layer.weight.data = data
                setattr(layer, "bias", bias)  # noqa: B010 - a linear layer may have none, which its type leaves out

    def _cut(self, group: Group, factors: Factors, rank: int) -> Iterator[tuple[nn.Linear, Tensor, Tensor | None]]:
        a, b = factors.truncate(rank)
        offset = factors.offset(rank)
        offsets = [None] * len(group.members) if offset is None else group.split(offset)
        for matrix, rows, part in zip(group.members, group.split(b), offsets, strict=True):
            yield get_linear(self.model, matrix.name), rows @ a, part

    @torch.inference_mode()
    def _mean_loss(self) -> float:
        training, total, count = self.model.training, 0.0, 0
        self.model.eval()
        try:
            for batch in self.batches:
                logits = self.model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                total += float(example_losses(logits, batch["labels"]).sum())
                count += len(batch["input_ids"])
        finally:
            self.model.train(training)
        return total / max(count, 1)
