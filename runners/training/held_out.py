"""Training examples that a tuned sweep trains on in none of its stages, and the loss on them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, overload

import numpy as np
import torch

from ...evals.tasks.prompts import IGNORED, Encoded
from ...foundation.errors import UserError
from ..stage_results import HeldOut
from .data import TaskData

HELD_OUT = 0.05
"""Share of a task's training examples that ``--tune`` chooses by; a hash of each decides."""
LEAST_EXAMPLES = 200
"""Training examples that a task needs at least, so that about ten of them are held out."""


class Part(Sequence[Encoded]):
    """Some of many examples, by their numbers."""

    def __init__(self, items: Sequence[Encoded], numbers: Sequence[int]) -> None:
        self.items, self.numbers = items, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Encoded: ...

    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...

    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """Return one example, or those of a slice."""
        if isinstance(index, slice):
            return [self.items[number] for number in self.numbers[index]]
        return self.items[self.numbers[index]]


def is_held_out(item: Encoded, share: float) -> bool:
    """Whether an example is among the share that is held out; it depends on its token ids alone, so copies go along."""
    start = hashlib.sha256(np.asarray(item.input_ids, dtype=np.int64).tobytes()).digest()[:8]
    return int.from_bytes(start) < share * 2**64


def split_held_out(data: TaskData, share: float) -> tuple[TaskData, TaskData]:
    """Return what is trained on, and what is held out.

    Raises:
        UserError: one of them is empty.
    """
    numbers: tuple[list[int], list[int]] = ([], [])
    for number, item in enumerate(data.items):
        numbers[is_held_out(item, share)].append(number)
    if not all(numbers):
        raise UserError(
            f"of {len(data.items)} training examples {len(numbers[1])} are held out to tune by, which leaves nothing "
            "to choose by or to train on; leave --tune out, or give more training examples"
        )
    trained, held_out = (replace(data, items=Part(data.items, part), used={}) for part in numbers)
    return trained, held_out


@torch.no_grad()
def mean_loss(model: Any, data: TaskData, batch_size: int, wide: bool = False) -> HeldOut:
    """Return the mean cross-entropy over all target tokens, in nats, and what was read.

    Args:
        model: whole, on any device; in evaluation mode afterwards.
        data: what is held out.
        batch_size: examples per forward pass.
        wide: whether products are computed in bfloat16, as in a training on a GPU.
    """
    model.eval()
    device = next(model.parameters()).device
    total, targets, tokens, examples = 0.0, 0, 0, 0
    for batch in data.batches(None, batch_size):
        with torch.autocast(device.type, torch.bfloat16, enabled=wide and device.type == "cuda"):
            logits = model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
                use_cache=False,
            ).logits
        labels = batch["labels"][:, 1:].to(device)
        losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().transpose(1, 2), labels, ignore_index=IGNORED, reduction="sum"
        )
        total += float(losses)
        targets += int((labels != IGNORED).sum())
        tokens += int(batch["attention_mask"].sum())
        examples += len(labels)
    return HeldOut(loss=total / max(targets, 1), examples=examples, tokens=tokens)
