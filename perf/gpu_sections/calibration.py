"""What gathering Gram matrices for the whitened methods costs, next to a plain forward pass over the same tokens.

Four decoder layers of Llama-2-7B's shape, one pass over the data: a layer costs what a layer costs. The Gram matrices
are float64 sums, whatever the model's dtype is.
"""

from collections.abc import Iterator
from functools import partial

import torch
from gpu_sections.fisher import RandomTokens
from gpu_sections.fitting import largest_that_fits
from gpu_sections.table import Context, Row, attempts
from random_models import LLAMA2_7B, TINY, random_llama

from lowrank_bench.methods.calibration.collection import input_moments
from lowrank_bench.models.matrices import matrices

LAYERS, LENGTH, BATCH, SAMPLES = 4, 2048, 8, 32
SMALL_LAYERS, SMALL_LENGTH, SMALL_BATCH, SMALL_SAMPLES = 2, 8, 2, 4


def run(context: Context) -> Iterator[Row]:
    """Yield a row for the forward pass and one for the Gram matrices, in float32 and in bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        yield from attempts([(f"calibration in {name}", partial(_rows, context, name, dtype))])


def _rows(context: Context, name: str, dtype: torch.dtype) -> list[Row]:
    shape, layers, length, batch, samples = (
        (TINY, SMALL_LAYERS, SMALL_LENGTH, SMALL_BATCH, SMALL_SAMPLES)
        if context.small
        else (LLAMA2_7B, LAYERS, LENGTH, BATCH, SAMPLES)
    )
    model = random_llama(shape | {"num_hidden_layers": layers}, 1.0, dtype, context.device)
    names = [matrix.name for matrix in matrices(model, head=False)]
    data = RandomTokens(shape["vocab_size"], length)

    def forward(examples: int, size: int) -> None:
        with torch.no_grad():
            for part in data.batches(examples, size):
                model.model(input_ids=part["input_ids"].to(context.device), use_cache=False)

    def grams(examples: int, size: int) -> None:
        for _ in input_moments(model, names, data, examples, size, limit_bytes=1 << 62):
            pass

    forward(batch, batch)
    batch, _ = largest_that_fits(batch, lambda size: grams(size, size))
    once = context.timed(lambda: grams(batch, batch)) + context.timed(lambda: forward(batch, batch))
    done = min(samples, max(1, int(0.4 * context.left / once)) * batch)
    plain = context.timed(lambda: forward(done, batch))
    gathered = context.timed(lambda: grams(done, batch))
    title = f"{layers} layers, {name}, batch {batch} x {length}"
    note = "" if done == samples else f"from {done} of {samples} examples"
    rows = [
        Row(f"plain forward pass, {title}", f"{done * length / plain:,.0f} tokens/s", note=note),
        Row(
            f"Gram matrices of {len(names)} inputs, {title}",
            f"{done * length / gathered:,.0f} tokens/s",
            f"{gathered / plain:.2f} x the time of the forward pass",
            note=note,
        ),
    ]
    return [*rows, Row(f"peak memory of tensors, {name}", context.peak())] if context.peak() else rows
