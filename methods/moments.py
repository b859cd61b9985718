"""Second moments of what enters a linear layer, and of the gradients that come back to it, streamed over task data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .base import CalibrationData
from .statistics import example_losses, only_embedding_requires_grad

GRAM_BYTES = 2 << 30
"""Most memory for the Gram matrices of one pass over the data; what does not fit is gathered in further passes."""


@dataclass(frozen=True)
class Moments:
    """Sums over the calibration tokens x (n,) that enter a linear layer; padding is left out.

    Attributes:
        gram: G = Σ x xᵀ, (n, n), float64.
        total: Σ x, (n,), float64.
        absolute: Σ |x|, (n,), float64.
        tokens: how many.
    """

    gram: Tensor
    total: Tensor
    absolute: Tensor
    tokens: int


def input_moments(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    limit_bytes: int = GRAM_BYTES,
    grams: bool = True,
) -> Iterator[tuple[str, Moments]]:
    """Yield the moments of each linear layer's input, in the order of the names.

    Layers that are given the very same tensor (q, k, v; gate, up) share one Gram matrix. Matrices are taken in chunks
    whose Gram matrices fit into ``limit_bytes`` (8·n² bytes each); each chunk is one pass over the data that ends at
    its last layer, so memory does not grow with the number of layers. All layers see the dense model's activations.

    Args:
        model: the model; not changed.
        names: dotted names of ``nn.Linear`` modules.
        data: task data.
        samples: examples to use, or None for all.
        batch_size: examples per forward pass; changes the result by rounding only.
        limit_bytes: see above; one matrix at least is taken at a time.
        grams: False leaves the Gram matrices empty (0, 0).
    """
    for chunk in _chunks(
        names, [model.get_submodule(name).in_features for name in names], limit_bytes if grams else None
    ):
        yield from _chunk_moments(model, chunk, data, samples, batch_size, grams).items()


def _chunks(names: Sequence[str], widths: Sequence[Any], limit_bytes: int | None) -> Iterator[list[str]]:
    chunk: list[str] = []
    used = 0
    for name, width in zip(names, widths, strict=True):
        size = 8 * int(width) ** 2
        if chunk and limit_bytes is not None and used + size > limit_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


class _Reached(Exception):
    """Every layer of a chunk has seen its input; the rest of the forward pass would be wasted."""


def _chunk_moments(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int, grams: bool
) -> dict[str, Moments]:
    device = next(model.parameters()).device
    sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    same: dict[str, str] = {}  # name of a layer -> the first layer that was given the same tensor
    seen: dict[str, Tensor] = {}  # inputs of the current pass
    mask = torch.zeros(0)

    def forward(name: str, args: tuple[Any, ...]) -> None:
        seen[name] = args[0]
        first = same.setdefault(name, next((other for other, x in seen.items() if x is args[0]), name))
        if first == name:
            x = args[0].detach().reshape(-1, args[0].shape[-1])[mask].double()
            new = (x.T @ x if grams else x.new_zeros(0, 0), x.sum(0), x.abs().sum(0))
            gram, total, absolute = sums.get(name, (torch.zeros(()),) * 3)
            sums[name] = (gram + new[0], total + new[1], absolute + new[2])
        if len(seen) == len(names):
            raise _Reached

    def hook(name: str) -> Any:
        return lambda _, args: forward(name, args)

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    training, tokens = model.training, 0
    model.eval()
    try:
        with torch.no_grad():
            for batch in data.batches(samples, batch_size):
                batch = {key: value.to(device) for key, value in batch.items()}
                mask = batch["attention_mask"].reshape(-1).bool()
                seen.clear()
                with contextlib.suppress(_Reached):
                    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
                tokens += int(mask.sum())
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    found = {}
    for name in names:
        gram, total, absolute = sums[same[name]]
        found[name] = Moments(gram.cpu(), total.cpu(), absolute.cpu(), tokens)
    return found


def gradient_grams(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    limit_bytes: int = GRAM_BYTES,
) -> Iterator[tuple[str, Tensor]]:
    """Yield R = Σ_t g_t g_tᵀ (m, m), float64, over tokens; g_t is the gradient of the loss by a layer's output.

    The loss is the sum over all target tokens of the calibration examples, labels shifted once; gradients are taken per
    token (a sum over tokens first would leave R of rank one per example). Memory as in `input_moments`.

    Args:
        model, names, data, samples, batch_size, limit_bytes: as in `input_moments`.
    """
    for chunk in _chunks(names, [model.get_submodule(name).out_features for name in names], limit_bytes):
        yield from _chunk_gradients(model, chunk, data, samples, batch_size).items()


def _chunk_gradients(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    mask = torch.zeros(0)

    def hook(name: str) -> Any:
        def backward(_: nn.Module, __: Any, gradients: tuple[Tensor, ...]) -> None:
            g = gradients[0].detach().reshape(-1, gradients[0].shape[-1])[mask].double()
            sums[name] = sums[name] + g.T @ g if name in sums else g.T @ g

        return backward

    handles = [model.get_submodule(name).register_full_backward_hook(hook(name)) for name in names]
    training = model.training
    model.eval()
    try:
        with only_embedding_requires_grad(model) as embedding:
            for batch in data.batches(samples, batch_size):
                batch = {key: value.to(device) for key, value in batch.items()}
                mask = batch["attention_mask"].reshape(-1).bool()
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                targets = (batch["labels"][:, 1:] != -100).sum(1)
                torch.autograd.grad((example_losses(logits, batch["labels"]) * targets).sum(), embedding)
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return {name: sums[name].cpu() for name in names}
