"""A training step at Llama-2-7B's shapes: Basis Selection next to full finetuning, LoRA and the rebuilt dense weight.

Batch 64 x 512 tokens, gradient checkpointing and bfloat16 over float32 weights with AdamW are what the authors' run
scripts give one GPU. So trained, 7 B parameters take about 108 GB before activations. Therefore two stacks of the
model's own decoder layers, with its whole embedding and head, are measured, and the rest follows from the line through
the two: a layer costs what a layer costs. A row's note says so, with what was measured.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

from bs_step import Measured, Setup, measure
from gpu_sections.fitting import Stack, largest_that_fits, share_row, size
from gpu_sections.table import Context, Row, attempts
from random_models import LLAMA2_7B

LAYERS = LLAMA2_7B["num_hidden_layers"]
STACKS, SMALL_STACKS = (2, 4), (1, 2)
ORDER = ("full", "lora", "bs 100 %", "bs 12 %", "bs 50 %", "rebuild")
"""What is most wanted comes first, in case that the time is up."""
NAMES = {"full": "full finetuning", "lora": "LoRA of rank 32", "rebuild": "Basis Selection, dense weight rebuilt"}
OPERATIONS = 8
"""Of full finetuning with gradient checkpointing, a parameter and token, as arithmetic.py counts."""

FULL = Setup(
    width=LLAMA2_7B["hidden_size"],
    inner=LLAMA2_7B["intermediate_size"],
    heads=LLAMA2_7B["num_attention_heads"],
    vocabulary=LLAMA2_7B["vocab_size"],
    batch=64,
    length=512,
    autocast=True,
    checkpointing=True,
)
SMALL = replace(FULL, width=64, inner=176, heads=2, vocabulary=128, batch=2, length=8, rounds=1)


def run(context: Context) -> Iterator[Row]:
    """Yield the rows of the part."""
    base, stacks = (SMALL, SMALL_STACKS) if context.small else (FULL, STACKS)
    base = replace(base, device=context.device)
    speeds: dict[str, float] = {}
    longest = 0.0
    for variant in ORDER:
        if context.left <= longest:
            yield Row(_name(variant), "not measured", note="the part's time was up")
            continue
        if variant == "lora" and not find_spec("peft"):
            yield Row(_name(variant), "not measured", note="peft is not installed")
            continue
        before = context.left
        yield from attempts([(_name(variant), partial(_measured, base, stacks, variant, speeds))])
        longest = max(longest, before - context.left)


def _measured(base: Setup, stacks: tuple[int, int], variant: str, speeds: dict[str, float]) -> list[Row]:
    batch, (less, more) = largest_that_fits(base.batch, lambda size: _both(base, stacks, size, variant))
    return _rows(replace(base, batch=batch), variant, less, more, speeds)


def _both(base: Setup, stacks: tuple[int, int], batch: int, variant: str) -> list[tuple[int, Measured]]:
    more, less = ((layers, measure(replace(base, layers=layers, batch=batch), variant)) for layers in reversed(stacks))
    return [less, more]  # the larger one was first, so that a batch that does not fit shows at once


def _rows(
    setup: Setup, variant: str, less: tuple[int, Measured], more: tuple[int, Measured], speeds: dict[str, float]
) -> list[Row]:
    """Return a variant's rows, and add its tokens/s to those of the variants before it."""
    seconds, memory, parameters = (
        Stack(*((layers, float(getattr(peak, field))) for layers, peak in (less, more))).at(LAYERS)
        for field in ("seconds", "bytes", "trained")
    )
    tokens = setup.batch * setup.length
    note = f"line through {less[0]} and {more[0]} layers: " + ", ".join(
        f"{peak.seconds:.3g} s {size(peak.bytes)}" for _, peak in (less, more)
    )
    if seconds is None or memory is None:
        note += "; where more layers took no more there is no line"
    figure = [f"{tokens / seconds:,.0f} tokens/s" if seconds else "no line", size(memory) if memory else "no line"]
    if seconds:
        speeds[variant] = tokens / seconds
    against = [
        f"{speeds[variant] / speeds[other]:.2f} x {other}"
        for other in ("full", "lora")
        if other != variant and {other, variant} <= set(speeds)
    ]
    title = f"{_name(variant)}, {LAYERS} layers, batch {setup.batch} x {setup.length}"
    rows = [Row(title, ", ".join(figure), ", ".join(against), note=note)]
    if variant == "full" and seconds and parameters:
        rows.append(share_row("TRAINING_SHARE", OPERATIONS * parameters * tokens, seconds, "full finetuning"))
    return rows


def _name(variant: str) -> str:
    return NAMES.get(variant, variant.replace("bs", "Basis Selection with") + " of the bases")
