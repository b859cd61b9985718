"""Whether full finetuning of Llama-2-7B's shape fits: two updates of the sweep's own trainer, for each placement.

The recipe is `paper`'s: 128 examples of 512 tokens an update, 8 a pass, gradient checkpointing, bfloat16 over float32
weights, AdamW. Weights and tokens are random. The estimate of `runners.training.memory` is printed beside the measured
peak; where it is more than the GPU has free, running out of memory is what it said.
"""

import importlib.util
import time
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from gpu_sections.fitting import size
from gpu_sections.table import Context, Row
from random_models import LLAMA2_7B, TINY, random_llama

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.foundation.memory import peak_resident_bytes, reset_peak_memory
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.memory import TrainingPeak, training_peak
from lowrank_bench.runners.training.recipes import RECIPES
from lowrank_bench.runners.training.settings import TrainSettings
from lowrank_bench.runners.training.trainer import TaskTrainer

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


def estimated_peak(
    placement: Any, settings: TrainSettings, shape: dict[str, int], length: int, device: str
) -> TrainingPeak:
    """Return the peak by formula."""
    with torch.device("meta"):
        skeleton = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, tie_word_embeddings=False))
    return training_peak(skeleton, settings, length, device, placement)


def run(context: Context, placement: str) -> Iterator[Row]:
    """Yield the row of one placement; its process does nothing else."""
    shape, length = (TINY, SMALL_LENGTH) if context.small else (LLAMA2_7B, LENGTH)
    settings = settings_for(placement, context.small)
    name = f"two updates, {placement}"
    if settings is None:
        yield Row(name, "not measured", note="trainings of this checkout have one placement, device")
        return
    if placement == "8-bit" and importlib.util.find_spec("torchao") is None:
        yield Row(name, "not measured", note="torchao is not installed")
        return
    plan = estimated_peak(placement, settings, shape, length, context.device)
    estimate = f"{size(plan.device)} on the device, {size(plan.host)} on the host estimated"
    data = random_examples(UPDATES * settings.batch_size, length, shape["vocab_size"])
    ends: list[float] = []
    free = torch.cuda.mem_get_info()[0] if context.device == "cuda" else 0
    reset_peak_memory()
    try:
        model = random_llama(shape, 1.0, torch.float32, context.device)
        trainer = TaskTrainer(
            data, settings, device=context.device, progress=lambda done, total: ends.append(time.perf_counter())
        )
        trainer.train(model, UPDATES)
    except torch.cuda.OutOfMemoryError as error:
        note = f"{size(free)} were free; {str(error).splitlines()[0][:100]}"
        yield Row(name, "does not fit", estimate, "as estimated", plan.device > free, note)
        return
    tokens = settings.batch_size * length
    speed = f"{tokens / (ends[1] - ends[0]):,.0f} tokens/s in the second"
    host = peak_resident_bytes()
    if context.device == "cpu":
        yield judged(name, f"{size(host)}, {speed}", estimate, host, plan.device, not context.small)
        return
    device, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    figure = f"{size(device)} on the GPU, {size(host)} on the host, {speed}"
    note = f"{size(reserved)} reserved, {size(free)} were free"
    yield judged(name, figure, estimate, device, plan.device, not context.small, note)


def judged(name: str, figure: str, estimate: str, measured: int, planned: int, counts: bool, note: str = "") -> Row:
    """Return the row of a training that fitted; the target is that what was estimated is near what was measured.

    Args:
        name, figure, promise, note: texts of the row.
        measured, planned: bytes.
        counts: whether the target does; small models are mostly libraries.
    """
    deviation = planned / measured - 1
    met = abs(deviation) <= TOLERANCE if counts else None
    return Row(name, figure, f"{estimate}, {deviation:+.0%}", f"within {TOLERANCE:.0%}", met, note)
