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
from gpu_sections.table import Row, Where, failed
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
        self.places = torch.arange(self.room, device=ids.device)
        self.last = torch.zeros(batch, 1, dtype=torch.long, device=ids.device)
        self.last.copy_(self._pass(ids, torch.arange(prompt, device=ids.device)))
        self.position.fill_(prompt)
        self.graph: Any = None

    def _pass(self, ids: Tensor, positions: Tensor) -> Tensor:
        # A mask of four dimensions is taken as it is; the model would otherwise build one that a graph cannot hold.
        seen = (self.places <= positions[:, None])[None, None].expand(len(ids), 1, -1, -1)
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
        """Go back to the end of a prompt; the keys and values behind it are written anew."""
        self.position.fill_(prompt)
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(prompt)

    def decode(self, tokens: int) -> None:
        """Make so many tokens."""
        for _ in range(tokens):
            self.graph.replay() if self.graph else self.step()


def run(where: Where) -> Iterator[Row]:
    """Yield the rows: medians over rounds in which all models take their turn."""
    shape, ratios = (TINY, SMALL_RATIOS) if where.small else (LLAMA2_7B, RATIOS)
    models = {ratio: random_llama(shape, ratio, torch.bfloat16, where.device) for ratio in (1.0, *ratios)}
    for model in models.values():
        growing(where, model, BATCHES[0])()  # loads the libraries; not measured
    turns = [(batch, way) for batch in BATCHES for way in WAYS]
    for turn, (batch, way) in enumerate(turns):
        share = where.left / (len(turns) - turn)
        prepare = growing if way == WAYS[0] else fixed
        if where.device == "cpu" and way == WAYS[1]:
            way = "cache of fixed size"
        try:
            yield from _measured(where, models, batch, way, prepare, where.left - share)
        except Exception as error:
            yield failed(f"batch {batch}, {way}", error)
        gc.collect()


def _measured(
    where: Where,
    models: dict[float, Any],
    batch: int,
    way: str,
    prepare: Callable[[Where, Any, int], Callable[[], float]],
    keep: float,
) -> Iterator[Row]:
    """Yield the rows of one batch and way; ``keep`` is the time that is left to the others at the end."""
    wanted = SMALL_ROUNDS if where.small else ROUNDS
    rounds: list[dict[float, float]] = []
    longest = 0.0
    if where.left > keep:
        ready = {ratio: prepare(where, model, batch) for ratio, model in models.items()}
        while len(rounds) < wanted and where.left - keep > longest:
            before = where.left
            rounds.append({ratio: work() for ratio, work in ready.items()})
            longest = before - where.left
    yield from _rows(where, models, batch, way, rounds, wanted)


def _prompts(where: Where, model: Any, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    length = SMALL_PROMPT if where.small else PROMPT
    return torch.randint(3, model.config.vocab_size, (batch, length), generator=generator).to(where.device)


def growing(where: Where, model: Any, batch: int) -> Callable[[], float]:
    """Return what measures the seconds of decoding after the first token, kernel by kernel."""
    ids, tokens = _prompts(where, model, batch), SMALL_TOKENS if where.small else TOKENS

    @torch.inference_mode()
    def work() -> float:
        first = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return where.timed(lambda: greedy(model, first, tokens))

    return work


def fixed(where: Where, model: Any, batch: int) -> Callable[[], float]:
    """Return what measures the same as `growing`, with a recorded step."""
    ids, tokens = _prompts(where, model, batch), SMALL_TOKENS if where.small else TOKENS
    with torch.no_grad():
        decoder = FixedDecoder(model, ids, tokens + 3)
        if where.device == "cuda":
            decoder.record()

    @torch.no_grad()
    def work() -> float:
        decoder.rewind(ids.shape[1])
        return where.timed(lambda: decoder.decode(tokens))

    return work


def greedy(model: Any, last: Any, tokens: int) -> Tensor:
    """Return so many tokens (b, tokens) that follow an output, the likeliest each time; its cache grows."""
    found = [last.logits[:, -1:].argmax(-1)]
    for _ in range(tokens):
        last = model(input_ids=found[-1], past_key_values=last.past_key_values, use_cache=True)
        found.append(last.logits[:, -1:].argmax(-1))
    return torch.cat(found[:-1], 1)


def _rows(
    where: Where, models: dict[float, Any], batch: int, way: str, rounds: list[dict[float, float]], wanted: int
) -> Iterator[Row]:
    prompt, tokens = (SMALL_PROMPT, SMALL_TOKENS) if where.small else (PROMPT, TOKENS)
    if not rounds:
        yield Row(f"batch {batch}, {way}", "not measured", note="the part's time was up")
        return
    medians = {ratio: statistics.median(found[ratio] for found in rounds) for ratio in models}
    dense = next(iter(models.values()))
    layers = dense.config.num_hidden_layers
    for ratio, model in models.items():
        name = "dense" if ratio == 1 else f"factorised {ratio:g}x"
        figure = f"{batch * tokens / medians[ratio]:,.1f} tokens/s, weights {size(_bytes(model))}"
        against = ""
        if ratio > 1:
            gain = statistics.median(found[1.0] / found[ratio] for found in rounds)
            against = f"{gain:.2f} x dense, weights {_bytes(model) / _bytes(dense):.2f} x"
        what = f"{name}, {layers} layers, batch {batch}, {prompt} + {tokens} tokens, {way}"
        note = "" if len(rounds) == wanted else f"from {len(rounds)} of {wanted} rounds"
        yield Row(what, figure, against, note=note)
    if batch == max(BATCHES):
        operations = 2 * sum(parameter.numel() for parameter in dense.parameters()) * batch * tokens
        yield share_row("GENERATION_SHARE", operations, medians[1.0], f"dense decoding, batch {batch}, {way}")


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
