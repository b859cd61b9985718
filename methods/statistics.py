"""Statistics of a model on task data, streamed batch by batch."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .base import CalibrationData


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's mean cross-entropy over its own target tokens, shape (b,), in float32.

    The labels are shifted once, here: position t predicts label t+1. Examples without a target give 0.

    Args:
        logits: (b, t, vocabulary).
        labels: (b, t), -100 where no loss counts.
    """
    targets = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (targets != -100).sum(1).clamp_min(1)


def squared_gradient_sums(other: Tensor, kept: Tensor) -> Tensor:
    """Return Σ over examples and over i of (GᵀX)²_ij, where GᵀX is one example's weight gradient, shape (n,).

    Either GᵀX is formed (t·m·n operations, m·n memory an example) or, as Σ_i (GᵀX)²_ij = [Xᵀ(GGᵀ)X]_jj, the token
    Gram matrix is (t²·(m+n) operations, t² memory): whichever costs less.

    Args:
        other: G (b, t, m), summed over.
        kept: X (b, t, n).
    """
    tokens, m, n = other.shape[1], other.shape[2], kept.shape[2]
    if tokens * (m + n) < m * n:
        return ((other @ other.transpose(1, 2) @ kept) * kept).sum((0, 1))
    return (other.transpose(1, 2) @ kept).square().sum((0, 1))


def input_fisher(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    axis: Literal["in", "out"] = "in",
) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher information of each weight, summed over one axis.

    f_j = mean over examples of Σ_i (∂L_example/∂W_ij)², with the gradient of each example's own loss (not of the
    batch's, in which gradients cancel).

    Args:
        model: the model; weights are not changed.
        names: dotted names of ``nn.Linear`` modules.
        data: task data.
        samples: examples to use, or None for all.
        batch_size: examples per forward pass; the result does not depend on it.
        axis: ``in`` sums over outputs and gives (n,), ``out`` sums over inputs and gives (m,).

    Returns:
        float32 vectors on the CPU by name.
    """
    device = next(model.parameters()).device
    totals: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    handles: list[Any] = []

    def watch(name: str, module: nn.Module) -> None:
        def forward(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs[name] = args[0].detach()

        def backward(_: nn.Module, __: Any, gradients: tuple[Tensor, ...]) -> None:
            x, g = inputs.pop(name).float(), gradients[0].float()
            # Some models flatten batch and time before a linear layer (OPT), so the batch size comes from the data.
            x, g = x.reshape(rows, -1, x.shape[-1]), g.reshape(rows, -1, g.shape[-1])
            kept, other = (x, g) if axis == "in" else (g, x)
            squares = squared_gradient_sums(other, kept)
            totals[name] = totals.get(name, torch.zeros_like(squares)) + squares

        handles.extend((module.register_forward_pre_hook(forward), module.register_full_backward_hook(backward)))

    training, count = model.training, 0
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    model.eval()
    for name in names:
        watch(name, model.get_submodule(name))
    try:
        # Only the embedding needs a gradient for the output gradients of all later layers to exist.
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        embedding.weight.requires_grad_(True)
        for batch in data.batches(samples, batch_size):
            batch = {key: value.to(device) for key, value in batch.items()}
            rows = len(batch["input_ids"])
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
            torch.autograd.grad(example_losses(logits, batch["labels"]).sum(), embedding.weight)
            count += rows
    finally:
        for handle in handles:
            handle.remove()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])
        model.train(training)
    return {name: (total / max(count, 1)).cpu() for name, total in totals.items()}


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
    """
    for chunk in _chunks(model, names, limit_bytes):
        yield from _chunk_moments(model, chunk, data, samples, batch_size).items()


def _chunks(model: nn.Module, names: Sequence[str], limit_bytes: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    used = 0
    for name in names:
        width = model.get_submodule(name).in_features
        size = 8 * int(width) ** 2  # type: ignore[arg-type]
        if chunk and used + size > limit_bytes:
            yield chunk
            chunk, used = [], 0
        chunk.append(name)
        used += size
    if chunk:
        yield chunk


class _Reached(Exception):
    """Every layer of a chunk has seen its input; the rest of the forward pass would be wasted."""


def _chunk_moments(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int
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
            new = (x.T @ x, x.sum(0), x.abs().sum(0))
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
