"""FWSVD's Fisher pass over Llama-2-7B in bfloat16, by the method's own code.

Basis Selection's paper uses FWSVD as a baseline and does not say how its Fisher information was gathered. So the batch
(8), the examples (1024) and the gradient of each example's own loss are the method's defaults here, and the length is
the longest that the authors train with (512). Every token of every example is a target, so real data takes less.
"""

from collections.abc import Iterator

import torch
from gpu_sections.fitting import largest_that_fits
from gpu_sections.table import Context, Row
from random_models import LLAMA2_7B, TINY, random_llama
from torch import Tensor

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.collection import input_fisher
from lowrank_bench.models.matrices import matrices

LENGTH = 512
SMALL_LENGTH, SMALL_BATCH, SMALL_SAMPLES = 8, 2, 4


class RandomTokens:
    """Examples of one length whose every token is a target."""

    def __init__(self, vocabulary: int, length: int) -> None:
        self.vocabulary, self.length = vocabulary, length

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield batches until the examples are used up; None is one batch."""
        generator = torch.Generator().manual_seed(1)
        left = samples or batch_size
        while left > 0:
            size = (min(batch_size, left), self.length)
            ids = torch.randint(3, self.vocabulary, size, generator=generator)
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
            left -= batch_size


def run(context: Context) -> list[Row]:
    """Return the rows of the section."""
    shape, length = (TINY, SMALL_LENGTH) if context.small else (LLAMA2_7B, LENGTH)
    method = create_method("fwsvd", {})
    count, batch = (SMALL_SAMPLES, SMALL_BATCH) if context.small else (method.samples, method.batch_size)
    model = random_llama(shape, 1.0, torch.bfloat16, context.device)
    names = [matrix.name for matrix in matrices(model, head=method.head)]
    data = RandomTokens(shape["vocab_size"], length)

    def passes(examples: int, size: int) -> float:
        return context.timed(lambda: input_fisher(model, names, data, examples, size))

    batch, _ = largest_that_fits(batch, lambda size: passes(size, size))
    once = passes(batch, batch)
    samples = min(count, max(1, int(0.8 * context.left / once)) * batch)
    seconds = passes(samples, batch)
    whole = seconds * count / samples
    note = "every token a target; batch and examples are the method's, the paper names none"
    if samples < count:
        note += f"; from {samples} of {count} examples, in proportion"
    title = f"Fisher pass, batch {batch} x {length} tokens, bfloat16, {len(names)} matrices"
    rows = [
        Row(title, f"{samples * length / seconds:,.0f} tokens/s", note=note),
        Row(f"Fisher pass over {count} examples", f"{whole / 3600:.2g} h"),
    ]
    return [*rows, Row("peak memory of tensors", context.peak())] if context.peak() else rows
