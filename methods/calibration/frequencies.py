"""How often tokens come in the calibration texts: for the weights of an embedding's rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import CalibrationData


def token_counts(data: CalibrationData, vocabulary: int, samples: int | None, batch_size: int) -> Tensor:
    """Return (V,) float64: how often each token is in the texts.

    Args:
        data: task data.
        vocabulary: V.
        samples: examples to read, or None for all.
        batch_size: of no effect on the result.
    """
    counts = torch.zeros(vocabulary, dtype=torch.float64)
    for batch in data.batches(samples, batch_size):
        ids = batch["input_ids"][batch["attention_mask"].bool()].cpu()
        counts += torch.bincount(ids, minlength=vocabulary)
    return counts


def token_weights(counts: Tensor) -> Tensor:
    """Return (V,) float64: each token's share of the texts in shares of the mean, with Laplace's count of one more.

    Without that one more, only the tokens of a few hundred texts would decide which directions of the embedding stay.
    """
    smoothed = counts + 1
    return smoothed / smoothed.mean()


def distinct_tokens(data: CalibrationData, samples: int | None, batch_size: int) -> int:
    """Return how many different tokens an example holds, added up over the examples.

    Args:
        data, samples, batch_size: as in `token_counts`.
    """
    return sum(
        len(ids[mask.bool()].unique())
        for batch in data.batches(samples, batch_size)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
