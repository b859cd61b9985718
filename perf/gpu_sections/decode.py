"""Greedy decoding at Llama-2-7B's whole shape in bfloat16: factorised at 2x, 4x and 7x next to dense, in two ways.

    kernel by kernel   transformers' growing cache; at small batches a step is mostly the launching of kernels, of
                       which a factorised model has more
    CUDA graph         a cache of fixed size; a whole step, the choice of the token included, is recorded once and
                       replayed, for dense and factorised models alike

On a CPU, which has no graphs, the recorded step is simply called. `perf/serving.py --gpu` measures vLLM.
"""

import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from gpu_sections.fitting import share_row, size
from gpu_sections.table import Context, Row, failed
from random_models import LLAMA2_7B, TINY, random_llama
from torch import Tensor

RATIOS, BATCHES = (2.0, 4.0, 7.0), (1, 8)
PROMPT, TOKENS, ROUNDS = 128, 32, 5
SMALL_RATIOS, SMALL_PROMPT, SMALL_TOKENS, SMALL_ROUNDS = (2.0,), 4, 2, 2
WAYS = ("kernel by kernel", "CUDA graph")


class FixedDecoder:
    """Greedy decoding with a cache of fixed size, a step of which can be recorded as a CUDA graph.

    Args:
        model: a Llama.
        ids: prompts (b, t), all of one length, on the model's device.
        tokens: how many the cache has room for behind them.
    """

    def __init__(self, model: Any, ids: Tensor, tokens: int) -> None:
        batch, prompt = ids.shape
        self.model, self.room = model, prompt + tokens
        self.cache = transformers.StaticCache(config=model.config, max_cache_len=self.room)
        self.position = torch.zeros(1, dtype=torch.long, device=ids.device)
        self.columns = torch.arange(self.room, device=ids.device)
        self.last = torch.zeros(batch, 1, dtype=torch.long, device=ids.device)
        self.last.copy_(self._pass(ids, torch.arange(prompt, device=ids.device)))
        self.position.fill_(prompt)
        self.graph: Any = None

    def _pass(self, ids: Tensor, positions: Tensor) -> Tensor:
        # A mask of four dimensions is taken as it is; the model would otherwise build one that a graph cannot hold.
        seen = (self.columns <= positions[:, None])[None, None].expand(len(ids), 1, -1, -1)
        output = self.model(
            input_ids=ids,
            position_ids=positions[None].expand(len(ids), -1),
            attention_mask=seen,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen: Tensor = output.logits[:, -1:].argmax(-1)
        return chosen

    def step(self) -> None:
        """Put the next token (b, 1) into ``last``."""
        self.last.copy_(self._pass(self.last, self.position))
        self.position += 1

    def record(self) -> None:
        """Record the step as a CUDA graph; what the cache holds afterwards is of no use but to be measured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries make their work spaces at first use, outside of the recording
            for _ in range(2):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.step()

    def rewind(self, prompt: int) -> None:
        """Go back to the end of a prompt; the keys and values behind it are written again."""
        self.position.fill_(prompt)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(prompt)

    def decode(self, tokens: int) -> None:
        """Make so many tokens."""
        for _ in range(tokens):
            self.graph.replay() if self.graph else self.step()


def run(context: Context) -> Iterator[Row]:
    """Yield the rows: medians over rounds in which all models take their turn."""
    shape, ratios = (TINY, SMALL_RATIOS) if context.small else (LLAMA2_7B, RATIOS)
    models = {ratio: random_llama(shape, ratio, torch.bfloat16, context.device) for ratio in (1.0, *ratios)}
    for model in models.values():
        growing(context, model, BATCHES[0])()  # loads the libraries; not measured
    turns = [(batch, variant) for batch in BATCHES for variant in WAYS]
    for turn, (batch, variant) in enumerate(turns):
        share = context.left / (len(turns) - turn)
        prepare = growing if variant == WAYS[0] else fixed
        if context.device == "cpu" and variant == WAYS[1]:
            variant = "cache of fixed size"
        try:
            yield from _measured(context, models, batch, variant, prepare, context.left - share)
        except Exception as error:
            yield failed(f"batch {batch}, {variant}", error)
        gc.collect()


def _measured(
    context: Context,
    models: dict[float, Any],
    batch: int,
    variant: str,
    prepare: Callable[[Context, Any, int], Callable[[], float]],
    keep: float,
) -> Iterator[Row]:
    """Yield the rows of one batch and way; ``keep`` is the time that is left to the others at the end."""
    most_rounds = SMALL_ROUNDS if context.small else ROUNDS
    rounds: list[dict[float, float]] = []
    longest = 0.0
    if context.left > keep:
        ready = {ratio: prepare(context, model, batch) for ratio, model in models.items()}
        while len(rounds) < most_rounds and context.left - keep > longest:
            before = context.left
            rounds.append({ratio: work() for ratio, work in ready.items()})
            longest = before - context.left
    yield from _rows(context, models, batch, variant, rounds, most_rounds)


def _prompts(context: Context, model: Any, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    length = SMALL_PROMPT if context.small else PROMPT
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=generator).to(context.device)


def growing(context: Context, model: Any, batch: int) -> Callable[[], float]:
    """Return what measures the seconds of decoding after the first token, kernel by kernel."""
    ids, tokens = _prompts(context, model, batch), SMALL_TOKENS if context.small else TOKENS

    @torch.inference_mode()
    def work() -> float:
        first = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return context.timed(lambda: greedy(model, first, tokens))

    return work


def fixed(context: Context, model: Any, batch: int) -> Callable[[], float]:
    """Return what measures the same as `growing`, with a recorded step."""
    ids, tokens = _prompts(context, model, batch), SMALL_TOKENS if context.small else TOKENS
    with torch.no_grad():
        decoder = FixedDecoder(model, ids, tokens + 3)
        if context.device == "cuda":
            decoder.record()

    @torch.no_grad()
    def work() -> float:
        decoder.rewind(ids.shape[1])
        return context.timed(lambda: decoder.decode(tokens))

    return work


def greedy(model: Any, last: Any, tokens: int) -> Tensor:
    """Return so many tokens (b, tokens) that follow an output, the likeliest each time; its cache grows."""
    tokens_so_far = [last.logits[:, -1:].argmax(-1)]
    for _ in range(tokens):
        last = model(input_ids=tokens_so_far[-1], past_key_values=last.past_key_values, use_cache=True)
        tokens_so_far.append(last.logits[:, -1:].argmax(-1))
    return torch.cat(tokens_so_far[:-1], 1)


def _rows(
    context: Context,
    models: dict[float, Any],
    batch: int,
    variant: str,
    rounds: list[dict[float, float]],
    most_rounds: int,
) -> Iterator[Row]:
    prompt, tokens = (SMALL_PROMPT, SMALL_TOKENS) if context.small else (PROMPT, TOKENS)
    if not rounds:
        yield Row(f"batch {batch}, {variant}", "not measured", note="the part's time was up")
        return
    medians = {ratio: statistics.median(seconds[ratio] for seconds in rounds) for ratio in models}
    dense = next(iter(models.values()))
    layers = dense.config.num_hidden_layers
    for ratio, model in models.items():
        name = "dense" if ratio == 1 else f"factorised {ratio:g}x"
        figure = f"{batch * tokens / medians[ratio]:,.1f} tokens/s, weights {size(_bytes(model))}"
        against = ""
        if ratio > 1:
            gain = statistics.median(seconds[1.0] / seconds[ratio] for seconds in rounds)
            against = f"{gain:.2f} x dense, weights {_bytes(model) / _bytes(dense):.2f} x"
        title = f"{name}, {layers} layers, batch {batch}, {prompt} + {tokens} tokens, {variant}"
        note = "" if len(rounds) == most_rounds else f"from {len(rounds)} of {most_rounds} rounds"
        yield Row(title, figure, against, note=note)
    if batch == max(BATCHES):
        operations = 2 * sum(parameter.numel() for parameter in dense.parameters()) * batch * tokens
        yield share_row("GENERATION_SHARE", operations, medians[1.0], f"dense decoding, batch {batch}, {variant}")


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
