"""Statistics of a model that is in memory as a whole: forward and backward passes over the task data."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..base import CalibrationData
from .fisher import FisherSums
from .logit_batches import logit_batches, vocabulary_of
from .moments import GradientRule, GradientSums, Moments, MomentSums, Reached, token_loss
from .precision import autocast
from .statistics import example_losses, only_embedding_requires_grad

GRAM_BYTES = 2 << 30
"""Most memory for the Gram matrices of one pass over the data; what does not fit is gathered in further passes."""


def input_moments(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    limit_bytes: int,
    grams: bool,
) -> Iterator[tuple[str, Moments]]:
    """Yield what `collection.input_moments` yields."""
    sizes = [int(model.get_submodule(name).in_features) ** 2 for name in names]  # type: ignore[arg-type]
    for chunk in _chunks(names, sizes, limit_bytes if grams else None):
        yield from _chunk_moments(model, chunk, data, samples, batch_size, grams).items()


def gradient_grams(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    limit_bytes: int,
    rule: GradientRule,
    diagonal: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """Yield what `collection.gradient_grams` yields."""
    sizes = [(1 if name in diagonal else _outputs(model, name)) * _outputs(model, name) for name in names]
    for chunk in _chunks(names, sizes, limit_bytes):
        yield from _chunk_gradients(model, chunk, data, samples, batch_size, rule, diagonal).items()


def _outputs(model: nn.Module, name: str) -> int:
    module: Any = model.get_submodule(name)
    return int(module.embedding_dim if isinstance(module, nn.Embedding) else module.out_features)


def input_fisher(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    axis: Literal["in", "out"],
) -> dict[str, Tensor]:
    """Return what `collection.input_fisher` returns."""
    sums = FisherSums(names, axis)
    with _evaluating(model), only_embedding_requires_grad(model) as embedding, sums.watching(model):
        for batch in logit_batches(_batches(model, data, samples, batch_size), vocabulary_of(model)):
            sums.begin(len(batch["input_ids"]))
            torch.autograd.grad(example_losses(_logits(model, batch), batch["labels"]).sum(), embedding)
    return sums.result()


def _chunk_moments(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int, grams: bool
) -> dict[str, Moments]:
    sums = MomentSums(names, grams)
    with _evaluating(model), torch.no_grad(), sums.watching(model):
        for batch in _batches(model, data, samples, batch_size):
            sums.begin(batch["attention_mask"])
            with contextlib.suppress(Reached):
                _logits(model, batch)
    return sums.result()


def _chunk_gradients(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int,
    rule: GradientRule,
    diagonal: Collection[str],
) -> dict[str, Tensor]:
    sums = GradientSums(names, rule=rule, diagonal=diagonal)
    with _evaluating(model), only_embedding_requires_grad(model) as embedding, sums.watching(model):
        for batch in logit_batches(_batches(model, data, samples, batch_size), vocabulary_of(model)):
            sums.begin(batch["attention_mask"])
            torch.autograd.grad(token_loss(_logits(model, batch), batch), embedding)
    grams = sums.result()
    return {name: grams[name].cpu() for name in names}


def _chunks(names: Sequence[str], entries: Sequence[int], limit_bytes: int | None) -> Iterator[list[str]]:
    """Give names so many at a time that their sums, float64, fit into the limit; one at least."""
    chunk: list[str] = []
    used = 0
    for name, size in zip(names, (8 * count for count in entries), strict=True):
        if chunk and limit_bytes is not None and used + size > limit_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _batches(
    model: nn.Module, data: CalibrationData, samples: int | None, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    device = next(model.parameters()).device
    for batch in data.batches(samples, batch_size):
        yield {key: value.to(device) for key, value in batch.items()}


def _logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    with autocast(ids.device):
        logits: Tensor = model(input_ids=ids, attention_mask=batch["attention_mask"], use_cache=False).logits
    return logits
