"""What is measured of a server and what came out, as plain data that travels between processes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OBJECTIVES = ("ttft", "tpot", "e2el")
"""What a service-level objective can bound, by the names of ``vllm bench serve``, in milliseconds."""


@dataclass(frozen=True)
class Load:
    """How requests arrive.

    Attributes:
        rate: requests per second, at random times (a Poisson process); infinite: all at once.
        concurrency: most requests that are under way; the next one is sent when one is answered. None bounds nothing.
    """

    rate: float = math.inf
    concurrency: int | None = None

    @property
    def name(self) -> str:
        """As part of a variant's name: ``rate2``, ``rateinf``, ``concurrency8``."""
        return f"concurrency{self.concurrency}" if self.concurrency else f"rate{self.rate:g}"

    @property
    def title(self) -> str:
        """For people."""
        if self.concurrency:
            return f"{self.concurrency} at a time"
        return "all at once" if math.isinf(self.rate) else f"{self.rate:g}/s"


@dataclass(frozen=True)
class OnlineSpec:
    """One checkpoint behind a server.

    Attributes:
        folder: checkpoint, dense or factorised, with its tokenizer.
        dtype: ``float32``, ``bfloat16`` or ``float16``.
        device: torch device.
        threads: CPU threads of the server.
        loads: measured one after the other.
        requests: sent for each load.
        prompt_tokens, new_tokens: lengths of every request in tokens.
        objectives: milliseconds by name, some of `OBJECTIVES`; a request that meets all of them counts as goodput.
    """

    folder: str
    dtype: str
    device: str
    threads: int
    loads: tuple[Load, ...]
    requests: int
    prompt_tokens: int
    new_tokens: int
    objectives: Mapping[str, float]


@dataclass(frozen=True)
class LoadTiming:
    """What ``vllm bench serve`` reported of one load, by its definitions; seconds, and per second.

    Attributes:
        first_token, first_token_p99: from sending a request to its first token, median and 99th percentile.
        per_token, per_token_p99: seconds per token after the first, averaged over each request.
        between_tokens, between_tokens_p99: gaps between tokens that arrive one after the other, of all requests.
        latency, latency_p99: from sending a request to its last token.
        requests_per_second, output_tokens_per_second: over the time from the first request to the last answer.
        goodput: requests per second that met all objectives; None without objectives.
        seconds: of the whole load.
    """

    first_token: float
    first_token_p99: float
    per_token: float
    per_token_p99: float
    between_tokens: float
    between_tokens_p99: float
    latency: float
    latency_p99: float
    requests_per_second: float
    output_tokens_per_second: float
    goodput: float | None
    seconds: float

    @classmethod
    def read(cls, result: Mapping[str, Any]) -> LoadTiming:
        """Build it from the JSON that ``vllm bench serve --save-result`` writes."""
        times = [
            float(result[f"{kind}_{name}_ms"]) / 1000
            for name in ("ttft", "tpot", "itl", "e2el")
            for kind in ("median", "p99")
        ]
        goodput = result.get("request_goodput")
        first, first_p99, token, token_p99, gap, gap_p99, latency, latency_p99 = times
        return cls(
            *(first, first_p99, token, token_p99, gap, gap_p99, latency, latency_p99),
            requests_per_second=float(result["request_throughput"]),
            output_tokens_per_second=float(result["output_throughput"]),
            goodput=None if goodput is None else float(goodput),
            seconds=float(result["duration"]),
        )
