"""Batches of passes that make all logits: as many examples as their logits leave room for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

LOGIT_BYTES = 1 << 29
"""Most float32 logits of a pass, unless one example alone has more; their loss and gradient take three times as much
again. Of 512 tokens and Gemma's 262,144 entries one example has that many, of Llama-2's 32,000 eight have."""


def most_examples(batch_size: int, tokens: int, vocabulary: int) -> int:
    """Return the examples of so many tokens that a pass takes, at most ``batch_size`` and at least one."""
    return max(1, min(batch_size, LOGIT_BYTES // (4 * max(tokens, 1) * max(vocabulary, 1))))


def logit_batches(batches: Iterable[Mapping[str, Tensor]], vocabulary: int) -> Iterator[dict[str, Tensor]]:
    """Yield batches, those whose logits would take too much memory in parts.

    Padding stays as it is, so that sums over examples differ by rounding only.

    Args:
        batches: tensors whose first dimension is that of the examples, ``input_ids`` (b, t) among them.
        vocabulary: entries of a row of logits.
    """
    for batch in batches:
        examples, tokens = batch["input_ids"].shape
        size = most_examples(examples, tokens, vocabulary)
        for start in range(0, examples, size):
            yield {key: value[start : start + size] for key, value in batch.items()}


def vocabulary_of(model: Any) -> int:
    """Return the entries of a row of logits."""
    return int(model.config.get_text_config().vocab_size)
