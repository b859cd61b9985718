"""Second moments of what enters a linear layer, and of the gradients that come back to it, streamed over task data."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.streamed import weights_of
from ..base import CalibrationData
from .statistics import example_losses, only_embedding_requires_grad

_ROWS, _WIDTH = 4096, 256  # tokens that are in float64 at a time; width of the bands of `add_gram`

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
        readers: how many layers were given this very input; they have this very object.
    """

    gram: Tensor
    total: Tensor
    absolute: Tensor
    tokens: int
    readers: int = 1


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
    its last layer, so memory does not grow with the number of layers. A streamed model is walked block by block
    instead, in one pass. All layers see the dense model's activations.

    Args:
        model: the model; not changed.
        names: dotted names of ``nn.Linear`` modules.
        data: task data.
        samples: examples to use, or None for all.
        batch_size: examples per forward pass; changes the result by rounding only.
        limit_bytes: see above; one matrix at least is taken at a time.
        grams: False leaves the Gram matrices empty (0, 0).
    """
    if weights_of(model) is not None:
        from .sequential_statistics import walked_moments

        yield from walked_moments(model, names, data, samples, batch_size, grams)
        return
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


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add the upper half of Σ x xᵀ to a sum, in bands; `mirrored` gives the whole.

    Half of the work and the bands left of the diagonal are saved, nothing of the precision: products and sums are
    float64. Float32 products are twice as fast, but leave ε_32 λ_1 in every eigenvalue, where the least ones of real
    models are 1e-13 λ_1.

    Args:
        total: (n, n), float64.
        x: (t, n), any floating dtype.
    """
    for part in x.split(_ROWS):
        wide = part.double()
        for begin in range(0, len(total), _WIDTH):
            band = slice(begin, begin + _WIDTH)
            total[band, begin:].addmm_(wide[:, band].T, wide[:, begin:])


def mirrored(total: Tensor) -> Tensor:
    """Return a sum of `add_gram` with its upper half below the diagonal too; changed in place."""
    for begin in range(0, len(total), _WIDTH):
        band = slice(begin, begin + _WIDTH)
        total[begin + _WIDTH :, band] = total[band, begin + _WIDTH :].T
        square = total[band, band]
        square.copy_(square.triu() + square.triu(1).T)
    return total


class Reached(Exception):
    """Every layer that is watched has seen its input; the rest of the forward pass would be wasted."""


class MomentSums:
    """Gathers the moments of some layers' inputs while `watching`.

    Args:
        names: dotted names of ``nn.Linear`` modules.
        grams: False leaves the Gram matrices empty.
        stop: whether `Reached` is raised in each batch when all layers have seen their input.
    """

    def __init__(self, names: Sequence[str], grams: bool, stop: bool = True) -> None:
        self.names, self.grams, self.stop, self.tokens = names, grams, stop, 0
        self._sums: dict[str, tuple[Tensor, ...]] = {}
        self._same: dict[str, str] = {}  # name of a layer -> the first layer that was given the same tensor
        self._seen: dict[str, Tensor] = {}  # inputs of the current batch
        self._mask = torch.zeros(0)

    def begin(self, mask: Tensor) -> None:
        """Start a batch with this attention mask (b, t)."""
        self._mask = mask.reshape(-1).bool()
        self._seen.clear()
        self.tokens += int(self._mask.sum())

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See every input that the layers of a model are given."""

        def hook(name: str) -> Any:
            return lambda _, args: self._see(name, args[0])

        handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in self.names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, name: str, given: Tensor) -> None:
        self._seen[name] = given
        first = self._same.setdefault(name, next((other for other, x in self._seen.items() if x is given), name))
        if first == name:
            x = given.detach().reshape(-1, given.shape[-1])[self._mask]
            n = x.shape[1]
            if name not in self._sums:
                sizes = ((n, n) if self.grams else (0, 0), (n,), (n,))
                self._sums[name] = tuple(torch.zeros(size, dtype=torch.float64, device=x.device) for size in sizes)
            gram, total, absolute = self._sums[name]
            if self.grams:
                add_gram(gram, x)
            total += x.sum(0, dtype=torch.float64)
            absolute += x.abs().sum(0, dtype=torch.float64)
        if self.stop and len(self._seen) == len(self.names):
            raise Reached

    def found(self) -> dict[str, Moments]:
        """Return the moments by name; layers with the same input get the same object."""
        found = {}
        for first, readers in Counter(self._same[name] for name in self.names).items():
            gram, total, absolute = self._sums[first]
            found[first] = Moments(mirrored(gram).cpu(), total.cpu(), absolute.cpu(), self.tokens, readers)
        return {name: found[self._same[name]] for name in self.names}


def _chunk_moments(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int, grams: bool
) -> dict[str, Moments]:
    device = next(model.parameters()).device
    sums, training = MomentSums(names, grams), model.training
    model.eval()
    try:
        with torch.no_grad(), sums.watching(model):
            for batch in data.batches(samples, batch_size):
                batch = {key: value.to(device) for key, value in batch.items()}
                sums.begin(batch["attention_mask"])
                with contextlib.suppress(Reached):
                    model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        model.train(training)
    return sums.found()


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
    if weights_of(model) is not None:
        from .sequential_statistics import walked_gradients

        yield from walked_gradients(model, names, data, samples, batch_size)
        return
    for chunk in _chunks(names, [model.get_submodule(name).out_features for name in names], limit_bytes):
        yield from _chunk_gradients(model, chunk, data, samples, batch_size).items()


class GradientSums:
    """Gathers Σ g gᵀ over tokens of some layers' output gradients while `watching`.

    Args:
        names: dotted names of ``nn.Linear`` modules.
        sums: what `found` gave for earlier batches.
    """

    def __init__(self, names: Sequence[str], sums: Mapping[str, Tensor] | None = None) -> None:
        self.names, self._sums = names, dict(sums or {})
        self._mask = torch.zeros(0)

    def begin(self, mask: Tensor) -> None:
        """Start a batch with this attention mask (b, t)."""
        self._mask = mask.reshape(-1).bool()

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See every gradient that comes back to the outputs of the layers of a model."""

        def hook(name: str) -> Any:
            def backward(_: nn.Module, __: Any, gradients: tuple[Tensor, ...]) -> None:
                g = gradients[0].detach().reshape(-1, gradients[0].shape[-1])[self._mask]
                if name not in self._sums:
                    m = g.shape[1]
                    self._sums[name] = torch.zeros(m, m, dtype=torch.float64, device=g.device)
                add_gram(self._sums[name], g)

            return backward

        handles = [model.get_submodule(name).register_full_backward_hook(hook(name)) for name in self.names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def found(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {name: mirrored(gram) for name, gram in self._sums.items()}


def token_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy summed over all target tokens of a batch."""
    targets = (batch["labels"][:, 1:] != -100).sum(1)
    return (example_losses(logits, batch["labels"]) * targets).sum()


def _chunk_gradients(
    model: nn.Module, names: Sequence[str], data: CalibrationData, samples: int | None, batch_size: int
) -> dict[str, Tensor]:
    device = next(model.parameters()).device
    found, training = GradientSums(names), model.training
    model.eval()
    try:
        with only_embedding_requires_grad(model) as embedding, found.watching(model):
            for batch in data.batches(samples, batch_size):
                batch = {key: value.to(device) for key, value in batch.items()}
                found.begin(batch["attention_mask"])
                logits = model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                ).logits
                torch.autograd.grad(token_loss(logits, batch), embedding)
    finally:
        model.train(training)
    sums = found.found()
    return {name: sums[name].cpu() for name in names}
