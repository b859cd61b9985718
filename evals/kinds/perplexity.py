"""Perplexity over fixed windows: exp of the mean negative log-likelihood per predicted token."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from ...foundation.errors import UserError
from ...foundation.files import digest
from ...records.intervals import exp_or_inf, nats_interval, perplexity_interval
from ..base import Benchmark, EvalSettings, Metric, Outcome, Progress
from ..data.datasets import Rows
from ..engines.base import BATCH_TOKENS, Engine, check_finite
from ..tasks.prompts import adds_bos


class PerplexityBenchmark(Benchmark):
    """Perplexity of a text cut into windows; the limit counts windows.

    Perplexities at different windows are different measurements (dense Llama-2-7B on WikiText-2: 5.47 at 2,048 tokens,
    5.12 at 4,096), so the window is part of the variant.

    Attributes:
        window: longest window in tokens, BOS included, unless the settings name another; a model with a shorter context
            gets its context.
        windowing: raised whenever windows are cut in another way.
    """

    window: ClassVar[int]
    windowing: ClassVar[int] = 1
    generates = False
    has_context = True

    @abstractmethod
    def data(self, settings: EvalSettings) -> Rows:
        """Return the texts."""

    @abstractmethod
    def windows(self, tokenizer: Any, texts: Sequence[str], window: int) -> list[list[int]]:
        """Cut the texts into windows of at most ``window`` token ids; each predicts all its ids but the first.

        Where the benchmark `has_bos_option`, ``bos=True`` asks for windows that each begin with a BOS.
        """

    @abstractmethod
    def describe(self, window: int) -> str:
        """Return the name of the variant with this window."""

    def variant(self, settings: EvalSettings) -> str:
        """Name the windowing; `Outcome.variant` names it again where the model's context is shorter."""
        return self._name(settings.context or self.window, settings)

    def _name(self, window: int, settings: EvalSettings) -> str:
        return self.describe(window) + ("-bos" if self._bos(settings) else "")

    def _bos(self, settings: EvalSettings) -> bool:
        return settings.bos and self.has_bos_option

    def check(self, settings: EvalSettings) -> None:
        """Raise a `UserError` if the data are missing or wrong."""
        if settings.limit is not None and settings.limit < 1:
            raise UserError(f"--limit {settings.limit} leaves no windows; use 1 or more, or leave it out for all")
        if settings.context is not None and settings.context < 2:
            raise UserError(f"--context {settings.context} predicts nothing; use 2 tokens or more, such as 2048")
        self.data(settings)

    def check_model(self, settings: EvalSettings, tokenizer: Any, context: int) -> None:
        """Raise a `UserError` if the windows that were asked for are longer than the model's context."""
        if settings.context is not None and settings.context > context:
            raise UserError(
                f"--context {settings.context} is more than the model takes ({context}); ask for at most that many "
                "tokens"
            )

    def longest_sequence(self, tokenizer: Any, settings: EvalSettings, context: int) -> int:
        """Return the window."""
        return min(settings.context or self.window, context)

    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return all that a result depends on besides the model."""
        return {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "data": self.data(settings).sha256,
            "limit": settings.limit,
            "windowing": self.windowing,
        }

    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Score the windows."""
        data = self.data(settings)
        self.check_model(settings, engine.tokenizer, engine.context_length)
        window = settings.context or min(self.window, engine.context_length)
        options = {"bos": True} if self._bos(settings) else {}
        windows = self.windows(engine.tokenizer, [row["text"] for row in data.rows], window, **options)
        windows = [ids for ids in windows if len(ids) > 1][: settings.limit]  # one token alone predicts nothing
        if not windows:
            raise UserError(
                f"the texts of '{self.name}' make no window of {window} tokens that predicts anything; use a benchmark "
                "with more text, or a smaller --context"
            )
        scores = engine.logprobs(windows, max(1, min(settings.batch_size, BATCH_TOKENS // window)), progress)
        check_finite(scores)
        sums, counts = [-math.fsum(row) for row in scores], [len(row) for row in scores]
        # Per token, not the mean over windows: a short last window must not weigh as much as a full one.
        mean = math.fsum(sums) / sum(counts)
        interval, nats = perplexity_interval(sums, counts), nats_interval(sums, counts)
        metrics = [
            Metric("perplexity", exp_or_inf(mean), interval.low, interval.high, len(windows), True, False),
            Metric("nats_per_token", mean, nats.low, nats.high, len(windows), False, False),
        ]
        samples = [
            {"index": index, "nll": nll, "tokens": count}
            for index, (nll, count) in enumerate(zip(sums, counts, strict=True))
        ]
        details = {"window": window, "windows": len(windows), "predicted_tokens": sum(counts), "source": data.source}
        if self.has_bos_option:
            details |= {"bos_per_window": self._bos(settings), "tokenizer_adds_bos": adds_bos(engine.tokenizer)}
        return Outcome(metrics, samples, digest(windows), details=details, variant=self._name(window, settings))
