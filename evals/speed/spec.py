"""What is measured and what came out, as plain data that travels between processes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

PROMPT_SEED = 20260101


@dataclass(frozen=True)
class SpeedSpec:
    """One measurement of one checkpoint.

    Attributes:
        folder: checkpoint, dense or factorised.
        engine: ``transformers`` or ``vllm``.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: torch device.
        threads: CPU threads.
        batch_sizes: measured one after the other.
        prompt_tokens: length of every prompt.
        new_tokens: length of every completion, at least 2.
    """

    folder: str
    engine: str
    dtype: str
    device: str
    threads: int
    batch_sizes: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> SpeedSpec:
        """Build it from plain data."""
        return cls(**{**values, "batch_sizes": tuple(values["batch_sizes"])})

    def prompts(self, batch: int, vocabulary: int) -> list[list[int]]:
        """Return the prompts of a batch: random ids, always the same ones."""
        draw = random.Random(PROMPT_SEED + batch)
        low = min(3, vocabulary - 1)  # the first ids are usually special
        return [[draw.randrange(low, vocabulary) for _ in range(self.prompt_tokens)] for _ in range(batch)]


@dataclass(frozen=True)
class Timing:
    """One batch, warm-up excluded.

    Attributes:
        batch: number of prompts.
        first_token_seconds: until every prompt has its first token.
        decode_tokens_per_second: tokens of all prompts after that, over the seconds they took.
    """

    batch: int
    first_token_seconds: float
    decode_tokens_per_second: float


@dataclass(frozen=True)
class Measured:
    """What one process measured.

    Attributes:
        load_seconds: from the folder to an engine that takes prompts; imports excluded.
        peak_memory_bytes: largest resident set of the process on a CPU; most device memory allocated on a GPU.
        timings: one per batch size.
        seconds: of the whole process's work, imports excluded.
        device: name of the processor or GPU, empty for a CPU.
        threads: CPU threads that torch used.
        engine_version: of transformers or vLLM.
    """

    load_seconds: float
    peak_memory_bytes: int
    timings: tuple[Timing, ...]
    seconds: float
    device: str
    threads: int
    engine_version: str

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Measured:
        """Build it from plain data."""
        return cls(**{**values, "timings": tuple(Timing(**timing) for timing in values["timings"])})

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
