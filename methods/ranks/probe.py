"""The loss of a model with some of its matrices truncated, for policies and searches that ask the model itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...models.matrices import get_linear
from ..base import CalibrationData
from ..calibration.logit_batches import logit_batches, vocabulary_of
from ..calibration.statistics import example_losses
from ..fitted import Factors, Fitted
from ..groups import Group
from .policies.base import Metric

PROBE_BATCH = 8
"""Most examples of a pass."""
TEMPERATURE = 0.6
"""Of the divergence, as in LEMS's code."""
DENSE_BYTES = 1 << 30
"""Most memory for the dense model's logits; those of further batches are computed at each evaluation."""


class Examples:
    """A fixed set of examples and what is asked about a model on them.

    Args:
        data: task data; never the test split.
        samples: how many examples, or None for all.
        batch_size: most examples per forward pass; large logits leave room for fewer (`logit_batches`).
        model: whose loss is asked for: where the batches go, and how large its logits are.
        metric: ``loss``, the mean over examples of each one's mean cross-entropy over its target tokens, or
            ``accuracy``, which asks for the error rate: the mean over examples of the share of target tokens that are
            not the model's first choice given the tokens before them. (``divergence`` is `Probe`'s.)
    """

    def __init__(
        self, data: CalibrationData, samples: int | None, batch_size: int, model: nn.Module, metric: Metric = "loss"
    ) -> None:
        self.metric = metric
        device = next(model.parameters()).device
        parts = logit_batches(data.batches(samples, batch_size), vocabulary_of(model))
        self.batches = [{key: value.to(device) for key, value in batch.items()} for batch in parts]

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


def target_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits from which a batch's target tokens are predicted, (targets, vocabulary), float32."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    predicted: Tensor = logits[:, :-1][batch["labels"][:, 1:] != -100].float()
    return predicted


def divergence(dense: Tensor, cut: Tensor) -> Tensor:
    """Return KL(dense ‖ cut) of each row of logits, (tokens,), at `TEMPERATURE`."""
    before, after = ((logits / TEMPERATURE).log_softmax(-1) for logits in (dense, cut))
    return (before.exp() * (before - after)).sum(-1)


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
        batch_size: int = PROBE_BATCH,
        metric: Metric = "loss",
    ) -> None:
        self.model, self.fitted = model, fitted
        self.groups = {group.name: group for group in groups}
        self.examples = Examples(data, samples, batch_size, model, metric)
        self.batches = self.examples.batches
        self._dense: dict[int, Tensor] = {}  # logits of the dense model at the target tokens, by batch
        self._dense_bytes = 0

    def loss(self, ranks: Mapping[str, int]) -> float:
        """Return the mean loss, error rate or divergence of the examples with these units cut to these ranks."""
        if self.examples.metric == "divergence":
            return self._divergence(ranks)
        with self.truncated(ranks):
            return self.examples.loss(self.model)

    @torch.inference_mode()
    def _divergence(self, ranks: Mapping[str, int]) -> float:
        """Return the mean over target tokens of KL(dense ‖ cut) at `TEMPERATURE`; infinite if not finite."""
        training, total, count = self.model.training, 0.0, 0
        self.model.eval()
        try:
            for index, batch in enumerate(self.batches):
                dense = self._dense.get(index)
                if dense is None:
                    dense = target_logits(self.model, batch)
                    size = dense.numel() * dense.element_size()
                    if self._dense_bytes + size <= DENSE_BYTES:
                        self._dense[index] = dense
                        self._dense_bytes += size
                # Cut batch by batch: dense logits that are not kept are computed in between.
                with self.truncated(ranks):
                    cut = target_logits(self.model, batch)
                total += float(divergence(dense, cut).sum())
                count += len(cut)
        finally:
            self.model.train(training)
        value = total / max(count, 1)
        return value if math.isfinite(value) else math.inf

    @contextmanager
    def truncated(self, ranks: Mapping[str, int]) -> Iterator[nn.Module]:
        """Give the model with these units cut to these ranks; their weights and biases come back afterwards."""
        saved: list[tuple[nn.Linear | nn.Embedding, Tensor, nn.Parameter | None]] = []
        try:
            for name, rank in ranks.items():
                for layer, weight, offset in self._cut(self.groups[name], self.fitted.factors(name), rank):
                    saved.append((layer, layer.weight.data, getattr(layer, "bias", None)))
                    layer.weight.data = weight.to(layer.weight)
                    if offset is not None and isinstance(layer, nn.Linear):
                        whole = offset if layer.bias is None else layer.bias.detach() + offset
                        layer.bias = nn.Parameter(whole.to(layer.weight), requires_grad=False)
            yield self.model
        finally:
            for layer, data, bias in reversed(saved):
                layer.weight.data = data  # of an embedding that a head is tied to, the head's too
                if isinstance(layer, nn.Linear):
                    setattr(layer, "bias", bias)  # noqa: B010 - it may have none, which its type leaves out

    def _cut(
        self, group: Group, factors: Factors, rank: int
    ) -> Iterator[tuple[nn.Linear | nn.Embedding, Tensor, Tensor | None]]:
        a, b = factors.truncate(rank)
        if group.embedding:
            embedding = self.model.get_submodule(group.name)
            assert isinstance(embedding, nn.Embedding)
            yield embedding, b @ a, None
            return
        offset = factors.offset(rank)
        offsets = [None] * len(group.members) if offset is None else group.split(offset)
        for matrix, rows, part in zip(group.members, group.split(b), offsets, strict=True):
            yield get_linear(self.model, matrix.name), rows @ a, part
