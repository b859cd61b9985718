"""What it costs to score texts: by vLLM and by transformers, in blocks of logits and from all logits at once.

    python perf/scoring.py FOLDER                             # 4 windows of 512 tokens of random ids
    python perf/scoring.py FOLDER --windows 2 --rounds 1 --no-vllm   # a quick look
    python perf/scoring.py FOLDER --dtypes float32,bfloat16 --data DATA   # perplexities of WikiText-2 too

CPU time of this process with one thread (`OMP_NUM_THREADS=1`), all in one process, in alternation; ratios are medians
over rounds of the ratio within a round, so that a busy machine changes them little. The first pass of each is not
counted; with --rounds 0 there is no other. Random ids cost what text costs. "choices" are 64 tokens long, 16 of them
scored, as in multiple choice.
"""

import argparse
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.base import Engine
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting.choice import engine_version

Ids = Sequence[Sequence[int]]
Score = Callable[[Ids, Sequence[int]], list[list[float]]]


@torch.inference_mode()
def from_all_logits(model: Any, batch_size: int, sequences: Ids, starts: Sequence[int]) -> list[list[float]]:
    """Score sequences of one length as this package did up to November 2026: all logits, then softmax row by row."""
    scores = []
    for first in range(0, len(sequences), batch_size):
        ids = torch.tensor(sequences[first : first + batch_size])
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        for row, own in zip(logits, ids, strict=True):
            scores.append(row[:-1].float().log_softmax(-1).gather(1, own[1:, None])[:, 0].tolist())
    return [row[start - 1 :] for row, start in zip(scores, starts, strict=True)]


def read_windows(options: argparse.Namespace, engine: TransformersEngine) -> Ids:
    """Return windows of WikiText-2, each with a BOS, or random ids."""
    if options.data is None:
        vocabulary = engine.model.config.get_text_config().vocab_size
        drawn = torch.randint(vocabulary, (options.windows, options.tokens), generator=torch.Generator().manual_seed(0))
        ids: list[list[int]] = drawn.tolist()
        return ids
    benchmark: Any = benchmarks.get("wikitext2")()
    texts = [row["text"] for row in benchmark.data(EvalSettings(data_dir=options.data)).rows]
    windows: list[list[int]] = benchmark.windows(engine.tokenizer, texts, options.tokens, bos=True)
    return windows[: options.windows]


def choices(options: argparse.Namespace, windows: Ids) -> tuple[Ids, list[int]]:
    """Return short sequences cut out of the windows, and that the last quarter of each is scored."""
    length = 64
    short = [ids[at : at + length] for ids in windows for at in range(0, options.tokens - length + 1, length)]
    return short, [3 * length // 4] * len(short)


def perplexity(scores: Sequence[Sequence[float]]) -> float:
    """Return exp of the mean negative log-probability."""
    return math.exp(-math.fsum(value for row in scores for value in row) / sum(map(len, scores)))


def seconds(score: Score, sequences: Ids, starts: Sequence[int]) -> float:
    """Return the CPU seconds of one pass."""
    started = time.process_time()
    score(sequences, starts)
    return time.process_time() - started


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> str:
    """Return the median over rounds of a ratio, with the least and the largest."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def measure(options: argparse.Namespace, dtype: str) -> float:
    """Print the lines of one dtype; return the perplexity of the windows by transformers."""
    engine = TransformersEngine(options.folder, dtype)
    subjects: dict[str, Score] = {
        "transformers": partial(engine.continuation_logprobs, batch_size=options.batch_size),
        "all logits": partial(from_all_logits, engine.model, options.batch_size),
    }
    other: Engine | None = None
    if options.vllm:
        from lowrank_bench.evals.engines.vllm import VllmEngine

        other = VllmEngine(options.folder, dtype, longest=options.tokens)
        subjects["vllm"] = partial(other.continuation_logprobs, batch_size=options.batch_size)
    windows = read_windows(options, engine)
    asked = {"windows": (windows, [1] * len(windows)), "choices": choices(options, windows)}
    first = [compare(f"{dtype} {name}", subjects, *sequences, options.rounds) for name, sequences in asked.items()]
    engine.close()
    if other is not None:
        other.close()
    return first[0]


def compare(title: str, subjects: dict[str, Score], sequences: Ids, starts: list[int], rounds: int) -> float:
    """Print the lines of one kind of sequences; return the perplexity by transformers."""
    first = {name: score(sequences, starts) for name, score in subjects.items()}
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for _ in range(rounds):
        for name, score in subjects.items():
            taken[name].append(seconds(score, sequences, starts))
    for name in subjects:
        pairs = zip(first[name], first["transformers"], strict=True)
        apart = max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
        spent = 1000 * statistics.median(taken[name]) / sum(map(len, sequences)) if rounds else math.nan
        print(
            f"{title}: {name:12}  {spent:7.3f} ms a token, perplexity {perplexity(first[name]):.5f}, "
            f"log-probabilities at most {apart:.1e} nats from transformers'"
        )
    for above, below in (("vllm", "transformers"), ("transformers", "all logits")):
        if rounds and above in subjects:
            print(f"{title}: {above} ÷ {below} = {ratio(taken[above], taken[below])}")
    return perplexity(first["transformers"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Scoring by vLLM, by transformers, and from all logits at once.")
    parser.add_argument("folder", type=Path, help="a model's folder")
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512, help="of a window")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtypes", default="float32")
    parser.add_argument("--data", type=Path, help="folder of datasets: windows of WikiText-2 instead of random ids")
    parser.add_argument("--vllm", action=argparse.BooleanOptionalAction, default=find_spec("vllm") is not None)
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    threads = os.environ.get("OMP_NUM_THREADS", "unset")
    versions = ", ".join(f"{name} {engine_version(name)}" for name in ("transformers", "vllm") if engine_version(name))
    size = f"{options.windows} windows of {options.tokens} tokens"
    print(f"{options.folder.name}: {size}, {versions}, OMP_NUM_THREADS {threads}")
    perplexities = {dtype: measure(options, dtype) for dtype in options.dtypes.split(",")}
    if len(perplexities) > 1:
        base, *rest = perplexities.items()
        for dtype, value in rest:
            print(f"perplexity, {dtype} ÷ {base[0]}: {value / base[1]:.5f}")
    print(f"load of the machine {load:.1f} before and {os.getloadavg()[0]:.1f} after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
