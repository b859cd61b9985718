"""Greedy decoding at Llama-2-7B's whole shape in bfloat16: factorised at 2x, 4x and 7x next to dense.

Token by token with transformers' cache, without CUDA graphs: at small batches a step then is mostly the launching of
kernels, of which a factorised model has more. `perf/serving.py --gpu` measures vLLM, which has graphs.
"""

import statistics
from typing import Any

import torch
from gpu_sections.fitting import share_row, size
from gpu_sections.table import Row, Where
from random_models import LLAMA2_7B, TINY, random_llama
from torch import Tensor

RATIOS, BATCHES = (2.0, 4.0, 7.0), (1, 8)
PROMPT, TOKENS, ROUNDS = 128, 32, 5
SMALL_RATIOS, SMALL_PROMPT, SMALL_TOKENS, SMALL_ROUNDS = (2.0,), 4, 2, 2


def run(where: Where) -> list[Row]:
    """Return the rows of the section: medians over rounds in which all models take their turn."""
    shape, ratios = (TINY, SMALL_RATIOS) if where.small else (LLAMA2_7B, RATIOS)
    wanted = SMALL_ROUNDS if where.small else ROUNDS
    models = {ratio: random_llama(shape, ratio, torch.bfloat16, where.device) for ratio in (1.0, *ratios)}
    for model in models.values():
        seconds(where, model, BATCHES[0])  # loads the libraries; not measured
    rows, begin = [], where.left
    for place, batch in enumerate(BATCHES):
        keep = begin * (len(BATCHES) - 1 - place) / len(BATCHES)
        rounds: list[dict[float, float]] = []
        longest = 0.0
        while len(rounds) < wanted and where.left - keep > longest:
            before = where.left
            rounds.append({ratio: seconds(where, model, batch) for ratio, model in models.items()})
            longest = before - where.left
        rows += _rows(where, models, batch, rounds, wanted)
    return rows


def seconds(where: Where, model: Any, batch: int) -> float:
    """Return the seconds of decoding after the first token."""
    prompt, tokens = (SMALL_PROMPT, SMALL_TOKENS) if where.small else (PROMPT, TOKENS)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, model.config.vocab_size, (batch, prompt), generator=generator).to(where.device)
    with torch.inference_mode():
        first = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return where.timed(lambda: greedy(model, first, tokens))


def greedy(model: Any, last: Any, tokens: int) -> Tensor:
    """Return so many tokens (b, tokens) that follow an output, the likeliest each time; its cache grows."""
    found = [last.logits[:, -1:].argmax(-1)]
    for _ in range(tokens):
        last = model(input_ids=found[-1], past_key_values=last.past_key_values, use_cache=True)
        found.append(last.logits[:, -1:].argmax(-1))
    return torch.cat(found[:-1], 1)


def _rows(
    where: Where, models: dict[float, Any], batch: int, rounds: list[dict[float, float]], wanted: int
) -> list[Row]:
    prompt, tokens = (SMALL_PROMPT, SMALL_TOKENS) if where.small else (PROMPT, TOKENS)
    if not rounds:
        return [Row(f"batch {batch}", "not measured", note="the section's time was up")]
    medians = {ratio: statistics.median(found[ratio] for found in rounds) for ratio in models}
    dense = next(iter(models.values()))
    layers = dense.config.num_hidden_layers
    rows = []
    for ratio, model in models.items():
        name = "dense" if ratio == 1 else f"factorised {ratio:g}x"
        figure = f"{batch * tokens / medians[ratio]:,.1f} tokens/s, weights {size(_bytes(model))}"
        against = ""
        if ratio > 1:
            gain = statistics.median(found[1.0] / found[ratio] for found in rounds)
            against = f"{gain:.2f} x dense, weights {_bytes(model) / _bytes(dense):.2f} x"
        what = f"{name}, {layers} layers, batch {batch}, {prompt} + {tokens} tokens"
        note = "" if len(rounds) == wanted else f"from {len(rounds)} of {wanted} rounds"
        rows.append(Row(what, figure, against, note=note))
    if batch == max(BATCHES):
        operations = 2 * sum(parameter.numel() for parameter in dense.parameters()) * batch * tokens
        rows.append(share_row("GENERATION_SHARE", operations, medians[1.0], f"dense decoding, batch {batch}"))
    return rows


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
