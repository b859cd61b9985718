"""What benchmarks share that compare the likelihoods of given texts: multiple choice, preferences between sentences.

An evaluation scores one or more requests per problem and then judges the numbers; `judge` works on the stored lines
alone. Their fields are those of completions (`evals.samples`), so that comparing and showing samples works on both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, ClassVar

from ...foundation.errors import UserError
from ...foundation.files import digest
from ..base import Benchmark, EvalSettings, Metric, Outcome, Progress, check_not_empty
from ..data.datasets import Rows
from ..engines.base import Engine
from ..tasks.chat import ASSISTANT, Conversation
from ..tasks.prompts import most_tokens, prompt_sha256
from .likelihood import ENCODING_VERSION, Likelihood, Pair, encode_pair, likelihoods

SCORED = ("loglikelihoods", "token_counts", "cut")
"""Fields of a line that scoring wrote; what `judge` adds follows from them and the data."""

Row = Mapping[str, Any]
Line = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """What one problem's log-likelihoods say.

    Attributes:
        verdicts: per scorer; ``correct`` or ``wrong``, or ``stereotype`` and ``other`` where no answer is right.
        choice: place of the request that counts as chosen.
        gold: place of the right one, or None.
        values: further numbers of the line, which metrics are made of.
    """

    verdicts: dict[str, str]
    choice: int
    gold: int | None
    values: dict[str, float]


def _pair_text(context: str, continuation: str) -> str:
    """Return a request as one text, as a conversation where it is one: no bound by its text holds for its template."""
    if isinstance(context, Conversation):
        return Conversation([*context.messages, {"role": ASSISTANT, "content": continuation}])
    return f"{context}\0{continuation}"


class ChoiceBenchmark(Benchmark):
    """A benchmark that reads likelihoods of given continuations; zero-shot, the same at both stages.

    Attributes:
        rules_version: raised whenever requests or verdicts change; part of every stage's identity.
    """

    generates = False
    rules_version: ClassVar[int] = 1

    @abstractmethod
    def data(self, settings: EvalSettings) -> Rows:
        """Return all problems, before any limit."""

    @abstractmethod
    def requests(self, rows: Sequence[Row], settings: EvalSettings) -> list[list[Pair]]:
        """Return each problem's contexts and continuations."""

    def prompts(self, rows: Sequence[Row], settings: EvalSettings) -> list[str]:
        """Return each problem's requests as text for people."""
        return ["\n".join(f"{head}⟶{tail}" for head, tail in pairs) for pairs in self.requests(rows, settings)]

    @abstractmethod
    def scorer(self) -> str:
        """Return the scorer of the headline."""

    @abstractmethod
    def judge_rows(self, rows: Sequence[Row], scores: Sequence[Sequence[Likelihood]]) -> list[Judged]:
        """Say what each problem's likelihoods mean."""

    @abstractmethod
    def metrics(self, rows: Sequence[Row], judged: Sequence[Judged]) -> list[Metric]:
        """Sum up; exactly one metric is the headline."""

    def rules(self) -> Mapping[str, Any]:
        """Return versions of what decides requests and verdicts."""
        return {"rules": self.rules_version, "encoding": ENCODING_VERSION}

    def problem_id(self, row: Row, index: int) -> str:
        """Return the problem's name in sample lines; unique in the benchmark."""
        return str(index)

    def check(self, settings: EvalSettings) -> None:
        """Raise a `UserError` if the data are missing or wrong."""
        if settings.limit is not None and settings.limit < 1:
            raise UserError(f"--limit {settings.limit} leaves no problems; use 1 or more, or leave it out for all")
        self.data(settings)

    def longest_sequence(self, tokenizer: Any, settings: EvalSettings, context: int) -> int:
        """Return the tokens of the longest context with its continuation; what does not fit is cut."""
        pairs = chain.from_iterable(self.requests(self.data(settings).rows[: settings.limit], settings))
        split = {_pair_text(head, tail): (head, tail) for head, tail in pairs}
        return min(most_tokens(split, lambda text: sum(map(len, encode_pair(tokenizer, *split[text])))), context)

    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return all that a result depends on besides the model."""
        return {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "data": self.data(settings).sha256,
            "limit": settings.limit,
            **self.rules(),
        }

    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Score and judge."""
        data = self.data(settings)
        rows = data.rows[: settings.limit]
        check_not_empty(self.name, rows)
        requests = self.requests(rows, settings)
        flat = iter(likelihoods(engine, [pair for pairs in requests for pair in pairs], settings.batch_size, progress))
        scores = [list(islice(flat, len(pairs))) for pairs in requests]
        lines = [self._line(row, index, requests[index], scores[index], settings) for index, row in enumerate(rows)]
        return self.judge(rows, lines, settings)

    def _line(
        self, row: Row, index: int, pairs: Sequence[Pair], scores: Sequence[Likelihood], settings: EvalSettings
    ) -> Line:
        return {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "stage": settings.stage,
            "scorer": self.scorer(),
            "temperature": 0.0,
            "problem": self.problem_id(row, index),
            "problem_sha256": digest(dict(row)),
            "sample": 0,
            "prompt_sha256": prompt_sha256([text for pair in pairs for text in pair]),
            "finish_reason": "scored",
            "loglikelihoods": [score.value for score in scores],
            "token_counts": [score.tokens for score in scores],
            "cut": sum(score.cut for score in scores),
        }

    def judge(self, rows: Sequence[Row], lines: Sequence[Line], settings: EvalSettings) -> Outcome:
        """Judge stored lines, one per problem in the same order, and sum up."""
        scores = [
            [
                Likelihood(value, count)
                for value, count in zip(line["loglikelihoods"], line["token_counts"], strict=True)
            ]
            for line in lines
        ]
        judged = self.judge_rows(rows, scores)
        requests = self.requests(rows, settings)
        samples = []
        for line, problem, pairs in zip(lines, judged, requests, strict=True):
            texts = [continuation for _, continuation in pairs]
            judgement = {
                "completion": texts[problem.choice],
                "tokens": line["token_counts"][problem.choice],
                "character_counts": [len(text) for text in texts],
                "choice": problem.choice,
                "gold": problem.gold,
                "answers": {},
                "verdicts": problem.verdicts,
            }
            samples.append({**line, **judgement, **problem.values})
        cut = sum(line["cut"] > 0 for line in lines)
        details = {"problems": len(rows), "problems_cut_to_context": cut, "requests": sum(map(len, scores))}
        prompts = digest([line["prompt_sha256"] for line in lines])
        data, variant = digest([dict(row) for row in rows]), self.variant(settings)
        return Outcome(self.metrics(rows, judged), samples, data, prompts, details, variant)
