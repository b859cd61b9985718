"""How fast a machine computes: by a short probe of it, or by a card's data sheet and assumed shares of its peak."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch

from .arithmetic import Work
from .assumptions import (
    CPU_SHARES,
    DECOMPOSITION_SHARE,
    DISK_BYTES_PER_SECOND,
    GENERATION_SHARE,
    STAGE_SECONDS,
    STAGE_SECONDS_ON_GPUS,
    TRAINING_SHARE,
)
from .probe import Probe, probe_cpu


@dataclass(frozen=True)
class Speeds:
    """Operations a second of one process, by the fields of `Work`.

    Attributes:
        eigen, double, moved, passes: as in `Work`, a second; 0 where the other speeds contain them.
        traffic: bytes of checkpoints and factors, a second.
        tokenizers: loads of the model's tokenizer, a second; 0 where `start` contains them.
        start: seconds of a stage beside its work.
    """

    training: float
    scoring: float
    reading: float
    generation: float
    decomposition: float
    eigen: float = 0.0
    double: float = 0.0
    moved: float = 0.0
    passes: float = 0.0
    traffic: float = DISK_BYTES_PER_SECOND
    tokenizers: float = 0.0
    start: float = STAGE_SECONDS

    def seconds(self, work: Work) -> float:
        """Return how long a stage computes."""
        pairs = ((getattr(work, field.name), getattr(self, field.name)) for field in fields(Work))
        return sum((amount / speed for amount, speed in pairs if speed), 0.0)


def card_speeds(peak: float) -> Speeds:
    """Return the speeds of a GPU by its peak of dense bfloat16 operations a second."""
    products, decomposing = TRAINING_SHARE * peak, DECOMPOSITION_SHARE * peak
    generation = GENERATION_SHARE * peak
    return Speeds(
        *(products, products, products, generation, decomposing, decomposing, decomposing), start=STAGE_SECONDS_ON_GPUS
    )


def cpu_speeds(
    dtype: torch.dtype, layers: int, threads: int, tokenizer_seconds: float = 0.0, probe: Probe | None = None
) -> Speeds:
    """Return the speeds of this CPU, as if nothing else ran on it.

    Args:
        dtype: of evaluations.
        layers: decoder blocks of the model.
        threads: of a worker.
        tokenizer_seconds: of loading the model's tokenizer; 0 where that is not known.
        probe: what one thread does; None takes `probe_cpu`.
    """
    thread, shares = probe or probe_cpu(), CPU_SHARES
    together = 1.0 + (threads - 1) * shares.threads
    decomposing = 1.0 + min(threads - 1, 3) * shares.threads_decomposing
    products = shares.products * together
    plain = products * thread.float32
    scoring = plain if dtype == torch.float32 else products * thread.bfloat16
    return Speeds(
        training=plain,
        scoring=scoring,
        reading=plain,
        generation=scoring,
        decomposition=shares.svd * decomposing * thread.svd,
        eigen=shares.eigen * decomposing * thread.eigen,
        double=shares.double * together * thread.float64,
        moved=shares.memory * min(together, 8.0) * thread.memory,
        passes=1.0 / (layers * shares.calls * thread.call),
        traffic=thread.disk,
        tokenizers=1.0 / tokenizer_seconds if tokenizer_seconds else 0.0,
    )
