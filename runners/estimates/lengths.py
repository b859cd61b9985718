"""How many tokens the stages of a plan read and write: from samples of the data, or what is known of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from ...evals.base import Benchmark, EvalSettings, benchmarks
from ...evals.harness.benchmark import HarnessTaskBenchmark
from ...evals.kinds.choice import ChoiceBenchmark
from ...evals.kinds.generative import GenerativeBenchmark
from ...evals.kinds.likelihood import encode_pair
from ...evals.kinds.perplexity import PerplexityBenchmark
from ...evals.tasks.base import get_task
from ...evals.tasks.prompts import encode_prompt
from ...models.footprint import context_length
from ..data_spec import DataSpec
from ..graph import Plan
from ..tokenizers import PlanTokenizer
from .assumptions import (
    BENCHMARKS,
    OPTIONS,
    SCORED_SHARE,
    TOKENS_PER_COMPLETION,
    TRAINING_SETS,
    UNKNOWN_BENCHMARK,
    UNKNOWN_SET,
)
from .at_hand import counts_by_size

_PROBLEMS, _CHARACTERS = 64, 200_000  # read of a benchmark to tell its lengths


@dataclass(frozen=True)
class TrainingLengths:
    """Of a training set.

    Attributes:
        examples: how many fit and are trained on; of a joined text, its windows.
        lengths: tokens of some of them, in random order.
    """

    examples: int
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Tokens of an example."""
        return sum(self.lengths) / len(self.lengths)

    def padded(self, batch_size: int) -> float:
        """Return the tokens that an example takes in a batch, which is as wide as its longest."""
        batches = [self.lengths[start : start + batch_size] for start in range(0, len(self.lengths), batch_size)]
        return sum(len(batch) * max(batch) for batch in batches) / len(self.lengths)


@dataclass(frozen=True)
class EvaluationLengths:
    """Of an evaluation.

    Attributes:
        requests: prompts, windows, or options with their contexts.
        tokens_read: tokens of all of them.
        scored: tokens of all of them whose likelihood is asked for.
        written: tokens that are generated for each.
    """

    requests: int
    tokens_read: float
    scored: float = 0.0
    written: int = 0

    @property
    def mean(self) -> float:
        """Tokens of a request."""
        return self.tokens_read / max(1, self.requests)


class Lengths:
    """Measures each training set and benchmark of a plan once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.context = context_length(plan.skeleton.config)
        self._tokenizer = PlanTokenizer(plan.source)
        self._training: dict[tuple[str, int], TrainingLengths] = {}
        self._evaluations: dict[str, EvaluationLengths] = {}

    def training(self, data: DataSpec) -> TrainingLengths:
        """Return the lengths of the training set that a stage reads."""
        task = get_task(data.task)
        limit = min(data.max_length or task.max_length, self.context)
        if (task.name, limit) not in self._training:
            self._training[task.name, limit] = self._measure_training(task.name, limit, data.chat)
        return self._training[task.name, limit]

    def _measure_training(self, name: str, limit: int, chat: bool) -> TrainingLengths:
        task, survey = get_task(name), self.plan.training_sets[name]
        if survey.sample and self.plan.at_hand.tokenizer:

            def count() -> list[int]:
                encoded = task.encode(self._tokenizer, list(survey.sample), limit, chat=chat)
                return [len(item.input_ids) for item in encoded.items]

            lengths = self._tokenizer.counted("examples", [survey.identity.model_dump(mode="json"), limit], count)
            if lengths:
                examples = max(1, round(len(lengths) * survey.examples / len(survey.sample)))
                return TrainingLengths(examples, tuple(lengths))
        tokens = TRAINING_SETS.get(survey.name, UNKNOWN_SET).tokens
        if task.joined:
            return TrainingLengths(max(1, survey.examples * tokens // limit), (limit,))
        return TrainingLengths(survey.examples, (min(tokens, limit),))

    def evaluation(self, name: str, settings: EvalSettings) -> EvaluationLengths:
        """Return the lengths of an evaluation.

        Args:
            name: of the benchmark.
            settings: how it is evaluated.
        """
        key = f"{name} {settings}"
        if key not in self._evaluations:
            benchmark = benchmarks.get(name)()
            known = counts_by_size(benchmark.name, self.plan.at_hand) or not self.plan.at_hand.tokenizer
            if known:
                self._evaluations[key] = self._known(benchmark, settings)
            else:
                asked = [dict(benchmark.identity(settings)), self.context, settings.samples, settings.max_new_tokens]
                counted = self._tokenizer.counted(
                    "evaluation", asked, lambda: astuple(self._measure(benchmark, settings))
                )
                self._evaluations[key] = EvaluationLengths(*counted)
        return self._evaluations[key]

    def _known(self, benchmark: Benchmark, settings: EvalSettings) -> EvaluationLengths:
        known = BENCHMARKS.get(benchmark.name, UNKNOWN_BENCHMARK)
        if isinstance(benchmark, PerplexityBenchmark):
            window = benchmark.longest_sequence(None, settings, self.context)
            windows = _limited(max(1, known.tokens // window), settings)
            return EvaluationLengths(windows, windows * window, windows * window)
        problems = _limited(known.problems, settings)
        if benchmark.is_generating(settings):
            return EvaluationLengths(problems, problems * known.tokens, written=_written(benchmark, settings))
        tokens_read, requests = problems * known.tokens, problems * OPTIONS
        return EvaluationLengths(requests, tokens_read, tokens_read * SCORED_SHARE)

    def _measure(self, benchmark: Benchmark, settings: EvalSettings) -> EvaluationLengths:
        if isinstance(benchmark, PerplexityBenchmark):
            texts, window = (
                [row["text"] for row in benchmark.data(settings).rows],
                min(settings.context or benchmark.window, self.context),
            )
            few = _first(texts, _CHARACTERS)
            # As in the evaluation: one token alone predicts nothing.
            cut = [ids for ids in benchmark.windows(self._tokenizer, few, window) if len(ids) > 1]
            share = sum(map(len, texts)) / max(1, sum(map(len, few)))
            windows = _limited(max(1, round(len(cut) * share)), settings)
            tokens_read = windows * sum(map(len, cut)) / max(1, len(cut))
            return EvaluationLengths(windows, tokens_read, tokens_read)
        if isinstance(benchmark, ChoiceBenchmark | GenerativeBenchmark):
            rows = benchmark.data(settings).rows[: settings.limit]
            some = rows[:: max(1, len(rows) // _PROBLEMS)]
            share = len(rows) / max(1, len(some))
            if isinstance(benchmark, GenerativeBenchmark):
                tokens = sum(len(encode_prompt(self._tokenizer, text)) for text in benchmark.prompts(some, settings))
                return EvaluationLengths(len(rows), tokens * share, written=_written(benchmark, settings))
            pairs = [pair for pairs in benchmark.requests(some, settings) for pair in pairs]
            ids = [encode_pair(self._tokenizer, *pair) for pair in pairs]
            tails = sum(len(tail) for _, tail in ids)
            return EvaluationLengths(
                round(len(pairs) * share), (sum(len(head) for head, _ in ids) + tails) * share, tails * share
            )
        if isinstance(benchmark, HarnessTaskBenchmark):
            counted = benchmark.count_tokens(self._tokenizer, settings, self.context, _PROBLEMS)
            requests = max(1, round(counted.requests))
            written = math.ceil(min(counted.written / requests, TOKENS_PER_COMPLETION))
            return EvaluationLengths(requests, counted.tokens, counted.scored, written)
        return self._known(benchmark, settings)


def _limited(count: int, settings: EvalSettings) -> int:
    return min(count, settings.limit or count)


def _written(benchmark: Benchmark, settings: EvalSettings) -> int:
    longest = (
        benchmark.max_new_tokens(settings)
        if isinstance(benchmark, GenerativeBenchmark)
        else settings.max_new_tokens or TOKENS_PER_COMPLETION
    )
    return min(longest, TOKENS_PER_COMPLETION) * settings.samples


def _first(texts: Sequence[str], characters: int) -> list[str]:
    few, total = [], 0
    for text in texts:
        few.append(text)
        total += len(text)
        if total >= characters:
            break
    return few
