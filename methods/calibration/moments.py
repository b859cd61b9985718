"""Sums over task data: second moments of what enters a linear layer, and of the gradients that come back to it.

They see whatever runs through the model while they watch; `in_memory` and `sequential_statistics` decide what runs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn

from .statistics import example_losses, watch_output_gradient

_ROWS, _WIDTH = 1024, 256
"""Tokens that are in float64 at a time, few enough to stay in a CPU's cache; width of the bands of `add_gram`."""

_HEAD_ROWS = 64
"""Tokens whose gradients by all logits are in float64 at a time: 134 MB with a vocabulary of 262,144."""


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


def add_gram(gram: Tensor, x: Tensor) -> None:
    """Add the upper half of Σ x xᵀ to a sum, in bands; `mirrored` gives the whole.

    Half of the work and the bands left of the diagonal are saved, nothing of the precision: products and sums are
    float64, and each entry is within 1e-14 √(G_ii G_jj) of the exact one, whatever the condition, means or sizes of the
    inputs. Float32 products err by 1e-7 √(G_ii G_jj): eigenvalues of G below that share would be noise, negative ones
    among them, and the Cholesky factor that the whitened methods need would not exist without jitter.

    Args:
        gram: (n, n), float64.
        x: (t, n), any floating dtype.
    """
    for part in x.split(_ROWS):
        _add_products(gram, part.double())


def _add_products(gram: Tensor, wide: Tensor) -> None:
    for begin in range(0, len(gram), _WIDTH):
        band = slice(begin, begin + _WIDTH)
        gram[band, begin:].addmm_(wide[:, band].T, wide[:, begin:])


def add_moments(gram: Tensor, total: Tensor, absolute: Tensor, x: Tensor) -> None:
    """Add Σ x xᵀ as `add_gram` does, Σ x and Σ |x| to sums; each part of the tokens is made float64 once for all three.

    Args:
        gram: (n, n), float64; (0, 0) where second moments are not wanted.
        total, absolute: (n,), float64.
        x: (t, n), any floating dtype.
    """
    for part in x.split(_ROWS):
        # A copy of float64 inputs too: `abs_` below would change the activations of the model.
        wide = part.to(torch.float64, copy=True)
        if len(gram):
            _add_products(gram, wide)
        total += wide.sum(0)
        absolute += wide.abs_().sum(0)


def mirrored(total: Tensor) -> Tensor:
    """Return a sum of `add_gram` with its upper half below the diagonal too; changed in place."""
    for begin in range(0, len(total), _WIDTH):
        band = slice(begin, begin + _WIDTH)
        total[begin + _WIDTH :, band] = total[band, begin + _WIDTH :].T
        # `add_gram` computes the blocks on the diagonal whole; their upper halves are taken, for exact symmetry.
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
        # Inputs of the current batch. What shares one is given it while it is alive; holding it would hold all layers'.
        self._seen: dict[str, ReferenceType[Tensor]] = {}
        self._mask, self._padded = torch.zeros(0), False

    def begin(self, mask: Tensor) -> None:
        """Start a batch with this attention mask (b, t)."""
        self._mask = mask.reshape(-1).bool()
        self._seen.clear()
        tokens = int(self._mask.sum())
        self._padded = tokens < len(self._mask)
        self.tokens += tokens

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
        # Settled at a layer's first call: that layers share an input is taken for a property of the model's code.
        if name not in self._same:
            self._same[name] = next((other for other, x in self._seen.items() if x() is given), name)
        self._seen[name] = ref(given)
        first = self._same[name]
        if first == name:
            x = given.detach().reshape(-1, given.shape[-1])
            if self._padded:
                x = x[self._mask]
            n = x.shape[1]
            if name not in self._sums:
                sizes = ((n, n) if self.grams else (0, 0), (n,), (n,))
                self._sums[name] = tuple(torch.zeros(size, dtype=torch.float64, device=x.device) for size in sizes)
            gram, total, absolute = self._sums[name]
            add_moments(gram, total, absolute, x)
        if self.stop and len(self._seen) == len(self.names):
            raise Reached

    def result(self) -> dict[str, Moments]:
        """Return the moments by name; layers with the same input get the same object."""
        moments = {}
        for first, readers in Counter(self._same[name] for name in self.names).items():
            gram, total, absolute = self._sums[first]
            moments[first] = Moments(mirrored(gram).cpu(), total.cpu(), absolute.cpu(), self.tokens, readers)
        return {name: moments[self._same[name]] for name in self.names}


_ROUNDING = 1e-6
"""Share of an example's largest gradient below which a token's gradient is a rounding error of float32."""


@dataclass(frozen=True)
class GradientRule:
    """Which tokens' gradients count, and how large they may be; as in KFAC-SVD's code with 10 and 0.125.

    Attributes:
        clip: c; each token's gradient is scaled so that its norm lies within [1/c, c] times the mean of the example's
            norms that are not zero. Those that are zero, or rounding errors beside the largest, stay. 0 changes
            nothing.
        trim: share of an example's tokens that are left out at its start, and as many at its end.
    """

    clip: float = 0.0
    trim: float = 0.0

    def apply(self, gradients: Tensor, mask: Tensor) -> Tensor:
        """Return the gradients that count, (tokens, m).

        Args:
            gradients: (b, t, m).
            mask: (b, t), True where there is a token; padding is on the right.
        """
        if self.trim:
            lengths = mask.sum(1, keepdim=True)
            cut = (self.trim * lengths).long()
            position = torch.arange(mask.shape[1], device=mask.device)
            mask = mask & (position >= cut) & (position < lengths - cut)
        if self.clip:
            norms = gradients.float().norm(dim=-1) * mask
            # Queries of a first token have no gradient: what is computed is rounding, whose direction means nothing.
            present = norms > _ROUNDING * norms.amax(1, keepdim=True)
            mean = (norms * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp_min(1)
            clipped = torch.minimum(torch.maximum(norms, mean / self.clip), mean * self.clip)
            scale = torch.where(present, clipped / norms, torch.ones_like(norms))
            gradients = gradients.float() * scale[..., None]
        return gradients[mask]


class GradientSums:
    """Gathers Σ g gᵀ over tokens of some layers' output gradients while `watching`.

    Args:
        names: dotted names of ``nn.Linear`` modules, and of the token embedding.
        sums: what `result` gave for earlier batches.
        rule: which gradients count.
        diagonal: names of which only Σ g² is gathered: a head has as many outputs as the vocabulary has tokens.
    """

    def __init__(
        self,
        names: Sequence[str],
        sums: Mapping[str, Tensor] | None = None,
        rule: GradientRule = GradientRule(),
        diagonal: Collection[str] = (),
    ) -> None:
        self.names, self._sums, self.rule, self.diagonal = names, dict(sums or {}), rule, frozenset(diagonal)
        self._mask = torch.zeros(0)

    def begin(self, mask: Tensor) -> None:
        """Start a batch with this attention mask (b, t)."""
        self._mask = mask.bool()

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """See every gradient that comes back to the outputs of the layers of a model."""

        def hook(name: str) -> Callable[[Tensor], None]:
            return lambda gradient: self._add(name, gradient)

        handles = [watch_output_gradient(model.get_submodule(name), hook(name)) for name in self.names]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, name: str, gradient: Tensor) -> None:
        # Some models flatten batch and time before a linear layer (OPT).
        g = gradient.detach().reshape(*self._mask.shape, gradient.shape[-1])
        g = self.rule.apply(g, self._mask.to(g.device))
        m = g.shape[1]
        if name not in self._sums:
            size = (m,) if name in self.diagonal else (m, m)
            self._sums[name] = torch.zeros(size, dtype=torch.float64, device=g.device)
        if name not in self.diagonal:
            add_gram(self._sums[name], g)
            return
        for part in g.split(_HEAD_ROWS):
            self._sums[name] += part.double().square().sum(0)

    def result(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {name: gram if name in self.diagonal else mirrored(gram) for name, gram in self._sums.items()}


def token_loss(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the cross-entropy summed over all target tokens of a batch."""
    targets = (batch["labels"][:, 1:] != -100).sum(1)
    return (example_losses(logits, batch["labels"]) * targets).sum()
