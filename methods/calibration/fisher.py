"""The diagonal Fisher information that the gradients of examples' losses add up to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .embedding_fisher import EmbeddingFisher, squared_gradient_sums
from .offload_cache import OffloadCache
from .statistics import watch_output_gradient


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

            def backward(gradient: Tensor) -> None:
                x, g = self._inputs.pop(name).float(), gradient.detach().float()
                # Some models flatten batch and time before a linear layer (OPT), so the batch size comes from the data.
                x, g = x.reshape(self._rows, -1, x.shape[-1]), g.reshape(self._rows, -1, g.shape[-1])
                columns, other = (x, g) if self.axis == "in" else (g, x)
                squares = squared_gradient_sums(other, columns)
                self.totals[name] = self.totals.get(name, torch.zeros_like(squares)) + squares

            handles.extend((module.register_forward_pre_hook(forward), watch_output_gradient(module, backward)))

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
