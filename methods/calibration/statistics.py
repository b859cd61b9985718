"""Losses of examples, and the diagonal Fisher information that their gradients add up to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .embedding_fisher import EmbeddingFisher, squared_gradient_sums
from .offload_cache import OffloadCache


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each example's mean cross-entropy over its own target tokens, shape (b,), in float32.

    The labels are shifted once, here: position t predicts label t+1. Examples without a target give 0.

    Args:
        logits: (b, t, vocabulary).
        labels: (b, t), -100 where no loss counts.
    """
    # Rows of logits stay as they lie in memory: with the vocabulary as the second of three dimensions, which
    # cross_entropy takes too, its softmax goes through memory in strides (`perf/example_losses.py`).
    targets = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    losses = nn.functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view(targets.shape).sum(1) / (targets != -100).sum(1).clamp_min(1)


@contextmanager
def only_embedding_requires_grad(model: nn.Module) -> Iterator[Tensor]:
    """Give the input embedding, for which alone a gradient is computed: all later output gradients exist then.

    What requires a gradient comes back afterwards.
    """
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        embedding: Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
        yield embedding.requires_grad_(True)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(required[name])


class FisherSums:
    """Gathers the diagonal Fisher information of some layers' weights while `watching`, see `collection.input_fisher`.

    Args:
        names: dotted names of ``nn.Linear`` modules, and of the token embedding.
        axis: ``in`` sums over outputs, ``out`` over inputs.
    """

    def __init__(self, names: Sequence[str], axis: Literal["in", "out"]) -> None:
        self.names, self.axis, self.examples, self.totals = names, axis, 0, dict[str, Tensor]()
        self._rows = 0
        self._inputs: dict[str, Tensor] = {}
        self._embeddings: dict[str, EmbeddingFisher] = {}

    def begin(self, rows: int) -> None:
        """Start a batch of that many examples."""
        self._rows = rows
        self.examples += rows

    @contextmanager
    def watching(self, model: nn.Module, cache: OffloadCache | None = None) -> Iterator[None]:
        """See every input that the layers of a model are given, and the gradients that come back to their outputs.

        Args:
            model: holds the layers.
            cache: where the gradients of a tied head wait for those of the lookup; None keeps them in memory.
        """
        handles: list[Any] = []

        def watch(name: str, module: nn.Module) -> None:
            def forward(_: nn.Module, args: tuple[Any, ...]) -> None:
                self._inputs[name] = args[0].detach()

            def backward(_: nn.Module, __: Any, gradients: tuple[Tensor, ...]) -> None:
                x, g = self._inputs.pop(name).float(), gradients[0].float()
                # Some models flatten batch and time before a linear layer (OPT), so the batch size comes from the data.
                x, g = x.reshape(self._rows, -1, x.shape[-1]), g.reshape(self._rows, -1, g.shape[-1])
                columns, other = (x, g) if self.axis == "in" else (g, x)
                squares = squared_gradient_sums(other, columns)
                self.totals[name] = self.totals.get(name, torch.zeros_like(squares)) + squares

            handles.extend((module.register_forward_pre_hook(forward), module.register_full_backward_hook(backward)))

        for name in self.names:
            module = model.get_submodule(name)
            if isinstance(module, nn.Embedding):
                sums = self._embeddings.setdefault(name, EmbeddingFisher(self.axis))
                sums.waiting = cache or sums.waiting
                handles += sums.watch(model, name)
            else:
                watch(name, module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> dict[str, Tensor]:
        """Return the means over the examples, float32 on the CPU, by name."""
        totals = self.totals | {name: sums.result() for name, sums in self._embeddings.items()}
        return {name: (total / max(self.examples, 1)).cpu() for name, total in totals.items() if total is not None}
