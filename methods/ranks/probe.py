"""The loss of a model with some of its matrices truncated, for policies and searches that ask the model itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...models.matrices import get_linear
from ..base import CalibrationData
from ..calibration.statistics import example_losses
from ..fitted import Factors, Fitted
from ..groups import Group
from .policies.base import Metric


class Examples:
    """A fixed set of examples and what is asked about a model on them.

    Args:
        data: task data; never the test split.
        samples: how many examples, or None for all.
        batch_size: examples per forward pass.
        device: where the model is.
        metric: ``loss``, the mean over examples of each one's mean cross-entropy over its target tokens, or
            ``accuracy``, which asks for the error rate: the mean over examples of the share of target tokens that are
            not the model's first choice given the tokens before them.
    """

    def __init__(
        self, data: CalibrationData, samples: int | None, batch_size: int, device: torch.device, metric: Metric = "loss"
    ) -> None:
        self.metric = metric
        self.batches = [
            {key: value.to(device) for key, value in batch.items()} for batch in data.batches(samples, batch_size)
        ]

    @torch.inference_mode()
    def loss(self, model: nn.Module) -> float:
        """Return the mean over the examples; the model is put into evaluation mode for it and back."""
        training, total, count = model.training, 0.0, 0
        model.eval()
        try:
            for batch in self.batches:
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                example_values = (example_losses if self.metric == "loss" else example_errors)(logits, batch["labels"])
                total += float(example_values.sum())
                count += len(batch["input_ids"])
        finally:
            model.train(training)
        return total / max(count, 1)


def example_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's share of target tokens that are not the most likely ones, shape (b,), 0 without a target.

    Args:
        logits: (b, t, vocabulary).
        labels: (b, t), -100 where nothing counts; shifted once, here.
    """
    targets = labels[:, 1:]
    counted = targets != -100
    wrong = (logits[:, :-1].argmax(-1) != targets) & counted
    return wrong.sum(1).float() / counted.sum(1).clamp_min(1)


class Probe:
    """Evaluates truncations of a dense model in place, on a fixed set of examples; the model is left as it was.

    Args:
        model: the dense model.
        groups: what can be truncated.
        fitted: the factors.
        data: task data; never the test split.
        samples: examples per evaluation, or None for all.
        batch_size: examples per forward pass.
        metric: what `loss` returns, see `Examples`.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Sequence[Group],
        fitted: Fitted,
        data: CalibrationData,
        samples: int | None,
        batch_size: int = 8,
        metric: Metric = "loss",
    ) -> None:
        self.model, self.fitted = model, fitted
        self.groups = {group.name: group for group in groups}
        self.examples = Examples(data, samples, batch_size, next(model.parameters()).device, metric)
        self.batches = self.examples.batches

    def loss(self, ranks: Mapping[str, int]) -> float:
        """Return the mean loss, or the error rate, of the examples with these units cut to these ranks."""
        with self.truncated(ranks):
            return self.examples.loss(self.model)

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
