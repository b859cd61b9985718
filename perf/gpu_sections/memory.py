"""Whether full finetuning of Llama-2-7B's shape fits: two updates of the sweep's own trainer, for each placement.

The recipe is `paper`'s: 128 examples of 512 tokens an update, 8 a pass, gradient checkpointing, bfloat16 over float32
weights, AdamW. Weights and tokens are random. What the plan foresees stands beside what was measured; where it
foresees more than the GPU has free, running out of memory is what it promised.
"""

import time
from collections.abc import Iterator
from typing import Any

import torch
from gpu_sections.fitting import size
from gpu_sections.table import Row, Where
from random_models import LLAMA2_7B, TINY, random_llama

from lowrank_bench.evals.prompts import Encoded
from lowrank_bench.foundation.memory import peak_resident_bytes, reset_peak_memory
from lowrank_bench.runners.data import TaskData
from lowrank_bench.runners.recipes import RECIPES, TrainSettings
from lowrank_bench.runners.training import TaskTrainer

UPDATES, LENGTH, SMALL_LENGTH = 2, 512, 8
TOLERANCE = 0.2


def random_examples(count: int, length: int, vocabulary: int) -> TaskData:
    """Return examples of one length whose every token is a target."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(3, vocabulary, (count, length), generator=generator).tolist()
    return TaskData([Encoded(ids, ids) for ids in rows], pad_token_id=0, dropped=0, seed=42)


def settings_for(placement: str, small: bool) -> TrainSettings | None:
    """Return the recipe for two updates with a placement, or None where this checkout has no such choice."""
    more: dict[str, Any] = {"steps": UPDATES}
    if small:
        more |= {"batch_size": 4, "micro_batch_size": 2}
    if "placement" in TrainSettings.model_fields:
        more["placement"] = placement
    elif placement != "device":
        return None
    return RECIPES["paper"].finetune.model_copy(update=more)


def run(where: Where, placement: str) -> Iterator[Row]:
    """Yield the row of one placement; its process does nothing else."""
    shape, length = (TINY, SMALL_LENGTH) if where.small else (LLAMA2_7B, LENGTH)
    settings = settings_for(placement, where.small)
    name = f"two updates, {placement}"
    if settings is None:
        yield Row(name, "not measured", note="trainings of this checkout have one placement, device")
        return
    data = random_examples(UPDATES * settings.batch_size, length, shape["vocab_size"])
    ends: list[float] = []
    free = torch.cuda.mem_get_info()[0] if where.device == "cuda" else 0
    before = peak_resident_bytes()
    reset_peak_memory()
    try:
        model = random_llama(shape, 1.0, torch.float32, where.device)
        trainer = TaskTrainer(
            data, settings, device=where.device, progress=lambda done, total: ends.append(time.perf_counter())
        )
        trainer.train(model, UPDATES)
    except torch.cuda.OutOfMemoryError as error:
        yield Row(name, "does not fit", f"{size(free)} free", note=str(error).splitlines()[0][:120])
        return
    tokens = settings.batch_size * length
    speed = f"{tokens / (ends[1] - ends[0]):,.0f} tokens/s in the second"
    host = peak_resident_bytes() - before
    if where.device == "cuda":
        device, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
        figure = f"{size(device)} on the GPU, {size(host)} on the host, {speed}"
        yield Row(name, figure, note=f"{size(reserved)} reserved of {size(free)} free")
    else:
        yield Row(name, f"{size(host)}, {speed}")
