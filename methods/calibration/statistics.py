"""Losses of examples, and which gradients of them are computed and seen."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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


def watch_output_gradient(module: nn.Module, see: Callable[[Tensor], None]) -> Any:
    """Call a function with each gradient that comes back to a module's output; returns the hook to remove.

    The hook is the output's own. A backward hook of the module makes its output a view, which Falcon changes in place,
    and autograd refuses that. What is looked up requires a gradient from here on, also where no weight does.
    """

    def forward(_: nn.Module, __: Any, output: Tensor) -> None:
        if torch.is_grad_enabled() and not output.requires_grad and isinstance(module, nn.Embedding):
            output.requires_grad_()
        if output.requires_grad:
            output.register_hook(see)

    return module.register_forward_hook(forward)
