"""How fast a machine computes: by a short probe of it, or by a card's data sheet and assumed shares of its peak."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from ...models.footprint import context_length
from ...models.loading import DTYPES
from ...models.matrices import matrices
from ..graph import Plan
from ..threads import cpu_threads
from .arithmetic import Work
from .assumptions import (
    DECOMPOSITION_SHARE,
    DISK_BYTES_PER_SECOND,
    GENERATION_SHARE,
    STAGE_SECONDS,
    STAGE_SECONDS_ON_GPUS,
    TRAINING_SHARE,
)

_PROBE_SECONDS = 0.1
_ROWS, _SIDE = 512, 4096  # of a probed product, at most
_LAYER_SECONDS = 4e-4  # of Python and small kernels, for one layer in one forward pass on a CPU
_CPU_SHARE = 0.7  # of a product's speed that a whole model reaches on a CPU


@dataclass(frozen=True)
class Speeds:
    """Operations a second of one process, by the fields of `Work`.

    Attributes:
        logits, passes: as in `Work`, a second; 0 where the other speeds contain them.
        start: seconds of a stage beside its work.
    """

    training: float
    scoring: float
    reading: float
    generation: float
    decomposition: float
    logits: float = 0.0
    passes: float = 0.0
    traffic: float = DISK_BYTES_PER_SECOND
    start: float = STAGE_SECONDS

    def seconds(self, work: Work) -> float:
        """Return how long a stage computes."""
        return (
            work.training / self.training
            + work.scoring / self.scoring
            + work.reading / self.reading
            + work.generation / self.generation
            + work.decomposition / self.decomposition
            + (work.logits / self.logits if self.logits else 0.0)
            + (work.passes / self.passes if self.passes else 0.0)
            + work.traffic / self.traffic
        )


def card_speeds(peak: float) -> Speeds:
    """Return the speeds of a GPU by its peak of dense bfloat16 operations a second."""
    products = TRAINING_SHARE * peak
    return Speeds(
        products, products, products, GENERATION_SHARE * peak, DECOMPOSITION_SHARE * peak, start=STAGE_SECONDS_ON_GPUS
    )


def cpu_speeds(plan: Plan, threads: int) -> Speeds:
    """Probe this CPU with products of the model's shapes and a decomposition; takes about half a second.

    Args:
        plan: says model, dtypes and batches.
        threads: of a worker.
    """
    largest = max(matrices(plan.skeleton, head=False), key=lambda m: m.parameters, default=None)
    inner = min(largest.in_features, _SIDE) if largest else 512
    outer = min(largest.out_features, _SIDE) if largest else 512
    rows = min(_ROWS, context_length(plan.skeleton.config))
    batch = min(plan.config.execution.eval_batch_size, plan.config.evaluation.limit or 10**9, rows)
    text = cast(Any, plan.skeleton).config.get_text_config()
    layers = int(getattr(text, "num_hidden_layers", None) or 1)
    with cpu_threads(threads):
        plain = _CPU_SHARE * _product_speed(rows, inner, outer, torch.float32)
        dtype = DTYPES[plan.dtype]
        scoring = plain if dtype == torch.float32 else _CPU_SHARE * _product_speed(rows, inner, outer, dtype)
        generation = _CPU_SHARE * _product_speed(batch, inner, outer, dtype)
        decomposition = _svd_speed(min(inner, outer, 512))
        logits = _logit_speed(int(text.vocab_size), dtype)
    passes = 1.0 / (layers * _LAYER_SECONDS)
    return Speeds(plain, scoring, plain, generation, decomposition, logits, passes)


def _product_speed(rows: int, inner: int, outer: int, dtype: torch.dtype) -> float:
    weight, x = torch.rand(outer, inner, dtype=dtype), torch.rand(rows, inner, dtype=dtype)
    return 2.0 * rows * inner * outer / _seconds(lambda: torch.nn.functional.linear(x, weight))


def _logit_speed(vocabulary: int, dtype: torch.dtype) -> float:
    scores = torch.rand(16, vocabulary, dtype=dtype)
    return scores.numel() / _seconds(lambda: torch.log_softmax(scores.float(), dim=-1))


def _svd_speed(side: int) -> float:
    matrix = torch.rand(side, side)
    return 20.0 * side**3 / _seconds(lambda: torch.linalg.svd(matrix, full_matrices=False))


def _seconds(run: Callable[[], Any]) -> float:
    """Return the seconds of one call, the best of several: other processes may disturb."""
    run()
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _PROBE_SECONDS or best == float("inf"):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best
