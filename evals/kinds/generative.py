"""What generating benchmarks share: problems → prompts by stage → completions → answers and verdicts → metrics.

An evaluation is `GenerativeBenchmark.generate` followed by `GenerativeBenchmark.judge`, with one plain-data line per
completion between them (fields as in `evals.samples`); `rescore` applies `judge` to stored lines.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from ...foundation.errors import UserError
from ...foundation.files import digest
from ..base import Benchmark, EvalSettings, Metric, Outcome, Progress, check_not_empty
from ..continuation import DECODING_VERSION
from ..data.datasets import Rows, load_rows
from ..engines.base import Completion, Engine, Sampling
from ..grading.metrics import PASS_AT, Verdict, pass_at_k, rate
from ..tasks.chat import Conversation, end_of_turn_ids
from ..tasks.prompts import PROMPT_VERSION, encode_prompt, most_tokens, prompt_sha256

MIN_NEW_TOKENS = 32
"""A prompt that leaves less room in the model's context is not sent; its problem counts as failed."""

TOO_LONG = "prompt-too-long"

Row = Mapping[str, Any]
Line = dict[str, Any]


@lru_cache(maxsize=16)
def cached_rows(name: str, split: str, data_dir: Path | None) -> Rows:
    """Load one split once per process; `check`, `identity` and `evaluate` all need it."""
    return load_rows(name, split, data_dir)


def prompt_name(settings: EvalSettings) -> str:
    """Return how the prompts of finetuned models are called in a variant."""
    return "chat" if settings.chat else "alpaca"


@dataclass
class Scored:
    """What was read from one completion and what the scorers say.

    Attributes:
        answers: per extractor, None where it found none.
        verdicts: per scorer.
        extra: further plain data for the sample's line.
    """

    answers: dict[str, str | None]
    verdicts: dict[str, Verdict]
    extra: dict[str, Any] = field(default_factory=dict)


class GenerativeBenchmark(Benchmark):
    """A benchmark whose completions are generated and then scored.

    Attributes:
        new_tokens: most tokens of a completion.
        metric: name of the headline metric.
    """

    new_tokens: ClassVar[int] = 512
    metric: ClassVar[str] = "accuracy"
    generates = True

    @abstractmethod
    def data(self, settings: EvalSettings) -> Rows:
        """Return all problems, before any limit."""

    @abstractmethod
    def prompts(self, rows: Sequence[Row], settings: EvalSettings) -> list[str]:
        """Return one prompt per problem, for the stage in the settings."""

    @abstractmethod
    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """Return the strings that end a completion."""

    @abstractmethod
    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return the versions and names of the scoring rules."""

    @abstractmethod
    def headline(self, settings: EvalSettings) -> str:
        """Return the scorer that is the headline at this stage."""

    @abstractmethod
    def score(
        self, rows: Sequence[Row], texts: Sequence[str], settings: EvalSettings
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Score completions, one per given row: (answers and verdicts, details)."""

    def reference_row(self, gold: str) -> Row:
        """Return a problem of which only the reference answer is known, in the benchmark's fields, for `score`.

        Raises:
            UserError: an answer that cannot be read, or a benchmark whose problems are more than a reference answer.
        """
        raise UserError(f"'{self.name}' needs more than a reference answer; name one of its problems by --item")

    def problem_id(self, row: Row, index: int) -> str:
        """Return the problem's name in sample lines; unique in the benchmark."""
        return str(index)

    def groups(self, row: Row) -> tuple[str, ...]:
        """Return the groups of problems that get a metric of their own, such as ``algebra`` and ``level-5``."""
        return ()

    def max_new_tokens(self, settings: EvalSettings) -> int:
        """Return the limit of a completion's tokens."""
        return settings.max_new_tokens or self.new_tokens

    def longest_sequence(self, tokenizer: Any, settings: EvalSettings, context: int) -> int:
        """Return the tokens of the longest prompt that is sent with its completion at its longest."""
        prompts = self.prompts(self.data(settings).rows[: settings.limit], settings)
        new = self.max_new_tokens(settings)
        room = context - min(new, MIN_NEW_TOKENS)  # longer prompts are not sent, see `complete`
        return min(most_tokens(prompts, lambda prompt: len(encode_prompt(tokenizer, prompt)), room) + new, context)

    def check(self, settings: EvalSettings) -> None:
        """Raise a `UserError` if the data are missing or wrong, or the settings make no sense."""
        if settings.limit is not None and settings.limit < 1:
            raise UserError(f"--limit {settings.limit} leaves no problems; use 1 or more, or leave it out for all")
        check_sampling(settings)
        self.data(settings)

    def check_model(self, settings: EvalSettings, tokenizer: Any, context: int) -> None:
        """Raise a `UserError` if not one prompt fits the model."""
        rows = self.data(settings).rows[: settings.limit]
        check_fits(self.name, self.prompts(rows, settings), tokenizer, context, settings.stage)

    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return all that a result depends on besides the model."""
        identity = {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "stage": settings.stage,
            "data": self.data(settings).sha256,
            "limit": settings.limit,
            "prompt_version": PROMPT_VERSION,
            "decoding_version": DECODING_VERSION,
            "stops": list(self.stops(settings)),
            "max_new_tokens": self.max_new_tokens(settings),
            "rules": dict(self.rules(settings)),
        }
        if settings.temperature == 0:
            return identity
        sampling = {name: getattr(settings, name) for name in ("samples", "temperature", "top_p", "seed")}
        return identity | {"sampling": sampling}

    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Generate and score."""
        rows = self.data(settings).rows[: settings.limit]
        return self.judge(rows, self.generate(engine, rows, settings, progress), settings)

    def generate(
        self, engine: Engine, rows: Sequence[Row], settings: EvalSettings, progress: Progress | None = None
    ) -> list[Line]:
        """Return one line per problem and sample, problem by problem, without answers and verdicts.

        Every round of samples has a seed of its own, so that an engine which seeds each request draws other samples.

        Raises:
            UserError: no problems, or not one prompt fits the model's context (`check_fits`).
        """
        check_sampling(settings)
        check_not_empty(self.name, rows)
        prompts = self.prompts(rows, settings)
        check_fits(self.name, prompts, engine.tokenizer, engine.context_length, settings.stage)
        fixed = {
            "benchmark": self.name,
            "variant": self.variant(settings),
            "stage": settings.stage,
            "scorer": self.headline(settings),
            "temperature": settings.temperature,
        }
        rounds = []
        for number in range(settings.samples):
            sampling = Sampling(
                self.max_new_tokens(settings),
                settings.temperature,
                settings.top_p,
                self.stops(settings),
                settings.seed + number,
            )
            report = _part(progress, number * len(rows), settings.samples * len(rows))
            rounds.append(complete(engine, prompts, sampling, settings.batch_size, report))
        return [
            {
                **fixed,
                "problem": self.problem_id(row, index),
                "problem_sha256": digest(dict(row)),
                "sample": number,
                "prompt_sha256": prompt_sha256([prompts[index]]),
                **_plain(rounds[number][index]),
            }
            for index, row in enumerate(rows)
            for number in range(settings.samples)
        ]

    def judge(self, rows: Sequence[Row], lines: Sequence[Line], settings: EvalSettings) -> Outcome:
        """Score lines of these problems and sum up; every problem has the same number of lines, one after the other."""
        count = len(lines) // len(rows)
        row_of_line = [row for row in rows for _ in range(count)]
        scored, details = self.score(row_of_line, [line["completion"] for line in lines], settings)
        for line, result in zip(lines, scored, strict=True):
            # Nothing was asked there, and the scorers have judged an empty text.
            if line["finish_reason"] == TOO_LONG:
                result.verdicts = dict.fromkeys(result.verdicts, "no-answer")
        samples = [
            {**line, "answers": result.answers, "verdicts": result.verdicts, **result.extra}
            for line, result in zip(lines, scored, strict=True)
        ]
        metrics = self._metrics(rows, scored, count, self.headline(settings))
        reasons = [line["finish_reason"] for line in lines]
        metrics += [rate("cut_off", _means([reason == "length" for reason in reasons], count), better=False)]
        if TOO_LONG in reasons:
            metrics += [rate("prompt_too_long", _means([r == TOO_LONG for r in reasons], count), better=False)]
        # Samples of one problem share its prompt, which is counted once.
        prompts = digest([line["prompt_sha256"] for line in lines[::count]])
        details = {"headline": self.headline(settings), "samples": count, **details}
        return Outcome(metrics, samples, digest([dict(row) for row in rows]), prompts, details)

    def _metrics(self, rows: Sequence[Row], scored: Sequence[Scored], count: int, headline: str) -> list[Metric]:
        metrics = []
        for name in scored[0].verdicts:
            verdicts = [result.verdicts[name] for result in scored]
            right = _means([verdict == "correct" for verdict in verdicts], count)
            metrics.append(rate(self.metric, right, name, headline=name == headline))
            if not self.runs_code:
                missing = _means([verdict == "no-answer" for verdict in verdicts], count)
                metrics.append(rate("no_answer", missing, name, better=False))
            if "timeout" in verdicts:
                metrics.append(rate("timeout", _means([v == "timeout" for v in verdicts], count), name, better=False))
            if name != headline:
                continue
            prefix = "pass" if self.metric == "pass@1" else f"{self.metric}-pass"
            for k in PASS_AT:
                if 1 < k <= count:
                    estimates = [pass_at_k(count, round(share * count), k) for share in right]
                    metrics.append(rate(f"{prefix}@{k}", estimates, name))
            members: dict[str, list[float]] = {}
            for row, share in zip(rows, right, strict=True):
                for group in self.groups(row):
                    members.setdefault(group, []).append(share)
            metrics += [rate(f"{self.metric}/{group}", members[group], name) for group in sorted(members)]
        return metrics


def check_sampling(settings: EvalSettings) -> None:
    """Raise a `UserError` where samples, temperature or top-p make no sense."""
    if settings.samples < 1:
        raise UserError(f"--samples {settings.samples} leaves nothing to score; use 1 or more")
    if not 0 <= settings.temperature <= 10:
        raise UserError(f"--temperature {settings.temperature:g} is not usable; use 0 (greedy) to 10, such as 0.8")
    if not 0 < settings.top_p <= 1:
        raise UserError(f"--top-p {settings.top_p:g} is not usable; use more than 0 and at most 1, such as 0.95")
    if settings.samples > 1 and settings.temperature == 0:
        raise UserError(
            f"--samples {settings.samples} at temperature 0 would draw the same completion each time; add "
            "--temperature 0.8, or leave --samples out"
        )


def check_fits(name: str, prompts: Sequence[str], tokenizer: Any, context: int, stage: str) -> None:
    """Raise a `UserError` if not one prompt leaves room for a completion: a score would be of no completion at all.

    Args:
        name: of the benchmark.
        prompts: as text.
        tokenizer: the model's.
        context: of the model, in tokens.
        stage: of the evaluation; it decides what is advised.
    """
    shortest = math.inf
    for prompt in sorted(prompts, key=len):  # the first one fits nearly always, so that one is encoded
        shortest = min(shortest, len(encode_prompt(tokenizer, prompt)))
        if context - shortest >= MIN_NEW_TOKENS:
            return
    advice = (
        "measure finetuned models alone, whose prompts have no examples (bench eval: --stage finetuned; bench run: "
        "--no-pretrained, without --training-free), or use a model with a longer context"
        if stage == "pretrained"
        else "use a model with a longer context, or another benchmark"
    )
    raise UserError(
        f"no prompt of '{name}' fits this model: the shortest has {shortest} tokens, and the model's context of "
        f"{context} must hold {MIN_NEW_TOKENS} more for the answer; {advice}"
    )


def complete(
    engine: Engine, prompts: Sequence[str], sampling: Sampling, batch_size: int, progress: Progress | None
) -> list[Completion | None]:
    """Complete each prompt within the model's context; None where it leaves less than `MIN_NEW_TOKENS`.

    Prompts with room for the whole completion get it; the others all get the least room among them.
    """
    encoded = [encode_prompt(engine.tokenizer, prompt) for prompt in prompts]
    if any(isinstance(prompt, Conversation) for prompt in prompts):
        sampling = replace(sampling, stop_ids=end_of_turn_ids(engine.tokenizer))
    room = [engine.context_length - len(ids) for ids in encoded]
    # An engine takes one limit a call. Two calls, so that one long prompt does not shorten everybody's completion.
    wide = [index for index, free in enumerate(room) if free >= sampling.max_new_tokens]
    tight = [index for index, free in enumerate(room) if MIN_NEW_TOKENS <= free < sampling.max_new_tokens]
    results: list[Completion | None] = [None] * len(prompts)
    done = 0
    for group in (wide, tight):
        if not group:
            continue
        limit = min(sampling.max_new_tokens, *(room[index] for index in group))
        ids = [encoded[index] for index in group]
        report = _part(progress, done, len(prompts))
        completions = engine.generate(ids, replace(sampling, max_new_tokens=limit), batch_size, report)
        for index, completion in zip(group, completions, strict=True):
            results[index] = completion
        done += len(group)
    return results


def _part(progress: Progress | None, before: int, total: int) -> Progress | None:
    """Report a part's progress as that of the whole."""
    return None if progress is None else lambda done, _: progress(before + done, total)


def _plain(completion: Completion | None) -> dict[str, Any]:
    """Return a completion's fields of a line."""
    if completion is None:
        return {"completion": "", "tokens": 0, "finish_reason": TOO_LONG}
    return {
        "completion": storable(completion.text),
        "tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }


def storable(text: str) -> str:
    """Replace what is no valid Unicode (lone surrogates) by ``?``, because it could not be written to a file."""
    return text.encode("utf-8", "replace").decode()


def _means(hits: Sequence[bool], count: int) -> list[float]:
    """Return each problem's share of hits among its ``count`` samples."""
    return [sum(hits[start : start + count]) / count for start in range(0, len(hits), count)]
