"""What estimates assume where nothing has been measured: shares of a GPU's peak, and what the known data hold.

Every number here is replaced by a measurement where there is one: finished stages, the data, a probe of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PEAK_FLOPS = 989e12
"""Dense bfloat16 operations a second of an H100 (SXM), from its data sheet; hours that name no card are for it."""
TRAINING_SHARE, GENERATION_SHARE, DECOMPOSITION_SHARE = 0.4, 0.05, 0.01
"""Shares of the peak that training and scoring, generation, and decompositions reach."""
PRODUCT_SHARE = 0.75
"""Share of the peak that one large product alone reaches, so that a measured product tells the peak."""
TOKENS_PER_EXAMPLE, TOKENS_PER_COMPLETION = 200, 250
"""Lengths: an instruction with its answer, a completion."""
OPTIONS, SCORED_SHARE = 3, 0.1
"""Of multiple choice: options of a problem, and the share of their tokens that the options are."""
FULL_BASES = 1.6
"""Entries of all bases over those of the matrices: 2 where they are square, 1.37 in the MLP of Llama-2-7B."""
SEARCH_TOKENS = 5000 * 64 * 128
"""Of a policy that asks the model: its most evaluations, the examples of each, their tokens (``surgical``)."""
DISK_BYTES_PER_SECOND = 1e9
"""Of checkpoints and factors, read or written."""
STAGE_SECONDS, STAGE_SECONDS_ON_GPUS = 2.0, 60.0
"""Of a stage beside its work: opening a model, reading data, writing records; with a GPU a process of its own that
imports torch, or an engine with its graphs."""

VLLM_START_SECONDS = 12.0
"""Of a process with vLLM on a CPU: 10 to 12.5 s measured for the built-in model on an idle core (30 November 2026)."""


@dataclass(frozen=True)
class CpuShares:
    """What stages reach on a CPU of what `probe` measures, and what of their work is counted only by a factor.

    Renewed with ``python perf/estimates.py RUN``: estimated beside measured seconds of a finished sweep.

    Attributes:
        products: speed of a model's products over that of the probed one; less where they are small.
        double: the same of the float64 products of Gram matrices and whitening.
        svd, eigen: speed of decompositions over the probed one's, which is of 256 rows.
        memory: speed at which activations move over that of a copied block: they are new memory each time.
        copies: how often a layer's inputs and outputs are read or written beside its product.
        calls: small operations of a decoder block in a forward pass.
        logit_bytes: read and written for each logit that becomes a likelihood in float32.
        packings: how often the weights of the head move for a block of logits.
        threads: share of a further thread's speed that products gain; decompositions gain `threads_decomposing`.
    """

    products: float = 0.7
    double: float = 0.7
    svd: float = 0.5
    eigen: float = 0.5
    memory: float = 0.5
    copies: float = 6.0
    calls: float = 60.0
    logit_bytes: float = 36.0
    packings: float = 3.0
    threads: float = 0.9
    threads_decomposing: float = 0.3


CPU_SHARES = CpuShares()


@dataclass(frozen=True)
class KnownSet:
    """How much a published training set holds.

    Attributes:
        examples: texts, or instructions with their answers.
        tokens: of an example.
    """

    examples: int
    tokens: int = TOKENS_PER_EXAMPLE


TRAINING_SETS: Mapping[str, KnownSet] = {
    "metamathqa": KnownSet(395_000),
    "gsm8k+math": KnownSet(14_973),
    "gsm8k": KnownSet(7_473),
    "codealpaca": KnownSet(20_022),
    "mbpp": KnownSet(374),
    "tinystories": KnownSet(2_276, 230),
    "wikitext2": KnownSet(36_718, 75),
    "c4": KnownSet(800, 500),
    "sfsd-mixture": KnownSet(6_714, 80),
    "arc-validation": KnownSet(867, 35),
}
UNKNOWN_SET = KnownSet(10_000)


@dataclass(frozen=True)
class KnownBenchmark:
    """How much a benchmark asks of a model.

    Attributes:
        problems: how many; of a perplexity the texts, whose windows count.
        tokens: read for a problem: the prompt, or all options with their contexts; of a perplexity all tokens.
        longest: most tokens of a prompt at any stage, or of a context with its option.
    """

    problems: int
    tokens: int
    longest: int = 300


BENCHMARKS: Mapping[str, KnownBenchmark] = {
    "gsm8k": KnownBenchmark(1319, 150, 1000),
    "math": KnownBenchmark(5000, 150, 2400),
    "math500": KnownBenchmark(500, 150, 1800),
    "humaneval": KnownBenchmark(164, 200, 600),
    "mbpp": KnownBenchmark(500, 200, 5000),
    "wikitext2": KnownBenchmark(4358, 340_000),
    "c4": KnownBenchmark(200, 100_000),
    "tinystories": KnownBenchmark(40, 9_000),
    "boolq": KnownBenchmark(3270, 300, 1500),
    "piqa": KnownBenchmark(1838, 75),
    "hellaswag": KnownBenchmark(10042, 190),
    "winogrande": KnownBenchmark(1267, 50),
    "arc-easy": KnownBenchmark(2376, 120),
    "arc-challenge": KnownBenchmark(1172, 150),
    "openbookqa": KnownBenchmark(500, 70),
    "crows-pairs": KnownBenchmark(1508, 35),
    "stereoset": KnownBenchmark(4229, 50),
    "winobias": KnownBenchmark(1584, 90),
}
UNKNOWN_BENCHMARK = KnownBenchmark(1000, 150, 2400)
