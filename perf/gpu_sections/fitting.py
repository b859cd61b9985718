"""What is measured in part and said of the whole, openly: batches that fit, layers that fit, shares of a GPU's peak."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from gpu_sections.table import Row

from lowrank_bench.runners.estimates import assumptions

T = TypeVar("T")


def largest_that_fits(batch: int, work: Callable[[int], T]) -> tuple[int, T]:
    """Return what ``work`` of the batch returns, of half of it where the GPU's memory is too small, and so on."""
    while True:
        try:
            return batch, work(batch)
        except torch.cuda.OutOfMemoryError:
            if batch == 1:
                raise
        batch //= 2  # outside of the handler, or its traceback would keep what did not fit
        gc.collect()
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class Stack:
    """A line through what two numbers of layers took, for any number of layers."""

    first: tuple[int, float]
    second: tuple[int, float]

    def at(self, layers: int) -> float | None:
        """Return the value for so many layers, or None where more layers did not take more, so that nothing follows."""
        (low, least), (high, most) = self.first, self.second
        slope = (most - least) / (high - low)
        return least + slope * (layers - low) if slope > 0 else None


def size(count: float) -> str:
    """Return bytes as text."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def share_row(constant: str, operations: float, seconds: float, of: str) -> Row:
    """Return a row with what a constant of `runners/estimates/assumptions.py` would be by a measurement.

    Args:
        constant: its name.
        operations: floating-point operations of the measured work, counted as arithmetic.py counts them.
        seconds: what the work took.
        of: the work.
    """
    share = operations / seconds / assumptions.PEAK_FLOPS
    assumed: Mapping[str, object] = vars(assumptions)
    return Row(f"{constant} of assumptions.py, by {of}", f"{share:.2g}", against=f"{assumed[constant]:g} assumed")
