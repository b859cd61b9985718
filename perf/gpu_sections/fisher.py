"""FWSVD's Fisher pass over Llama-2-7B in bfloat16, by the method's own code.

Basis Selection's paper uses FWSVD as a baseline and does not say how its Fisher information was gathered. So the batch
(8), the examples (1024) and the gradient of each example's own loss are the method's defaults here, and the length is
the longest that the authors train with (512). Every token of every example is a target, so real data takes less.
"""

from collections.abc import Iterator

import torch
from gpu_sections.fitting import largest_that_fits
from gpu_sections.table import Row, Where
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


def run(where: Where) -> list[Row]:
    """Return the rows of the section."""
    shape, length = (TINY, SMALL_LENGTH) if where.small else (LLAMA2_7B, LENGTH)
    method = create_method("fwsvd", {})
    wanted, batch = (SMALL_SAMPLES, SMALL_BATCH) if where.small else (method.samples, method.batch_size)
    model = random_llama(shape, 1.0, torch.bfloat16, where.device)
    names = [matrix.name for matrix in matrices(model, head=method.head)]
    data = RandomTokens(shape["vocab_size"], length)

    def passes(examples: int, size: int) -> float:
        return where.timed(lambda: input_fisher(model, names, data, examples, size))

    batch, _ = largest_that_fits(batch, lambda size: passes(size, size))
    once = passes(batch, batch)
    samples = min(wanted, max(1, int(0.8 * where.left / once)) * batch)
    seconds = passes(samples, batch)
    whole = seconds * wanted / samples
    note = "every token a target; batch and examples are the method's, the paper names none"
    if samples < wanted:
        note += f"; from {samples} of {wanted} examples, in proportion"
    what = f"Fisher pass, batch {batch} x {length} tokens, bfloat16, {len(names)} matrices"
    rows = [
        Row(what, f"{samples * length / seconds:,.0f} tokens/s", note=note),
        Row(f"Fisher pass over {wanted} examples", f"{whole / 3600:.2g} h"),
    ]
    return [*rows, Row("peak memory of tensors", where.peak())] if where.peak() else rows
