"""Which examples make up each optimizer step, and in what order they pass through the model."""

from __future__ import annotations

from collections.abc import Iterator

from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import Dataset, Sampler

from ...evals.tasks.prompts import IGNORED, Encoded
from .data import TaskData


class Examples(Dataset[Encoded]):
    """The examples, and behind the last one a blank that nothing is learnt from."""

    def __init__(self, data: TaskData) -> None:
        self.items, self.blank = data.items, Encoded([data.pad_token_id], [IGNORED])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Encoded:
        return self.blank if index == len(self.items) else self.items[index]


class StepSampler(Sampler[int]):
    """A seeded order of all examples in each epoch, optimizer step by optimizer step.

    Args:
        examples: of the task.
        seed: of the order, which is the one that a single process has.
        multiple: the order is filled up with blanks to a multiple of this many; accelerate would repeat examples at
            the end of an epoch where processes share it.
        sorted_step: examples of one optimizer step, which are sorted by length, longest first, so that each pass holds
            examples of like length and little padding; None keeps the seeded order. A step has the same examples
            either way, and the same gradient up to rounding, where the loss is a sum over the step's tokens divided by
            their number.
    """

    def __init__(self, examples: Examples, seed: int, multiple: int = 1, sorted_step: int | None = None) -> None:
        self.examples, self.sorted_step = examples, sorted_step
        self.order, self.blank = SeedableRandomSampler(examples, data_seed=seed), len(examples)
        self.length = -(-len(examples) // multiple) * multiple

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        order = [*self.order, *[self.blank] * (self.length - self.blank)]
        for start in range(0, self.length, self.sorted_step or self.length):
            step = order[start : start + (self.sorted_step or self.length)]
            if self.sorted_step:
                step.sort(key=lambda index: -len(self.examples[index].input_ids))
            yield from step

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.order.set_epoch(epoch)
