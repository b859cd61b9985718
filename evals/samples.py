"""Lines of a ``samples.jsonl`` file: their fields, and reading them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Required, TypedDict, cast, final

from ..foundation.errors import UserError
from ..foundation.files import open_regular

GENERATED = (
    *("benchmark", "variant", "stage", "scorer", "temperature", "problem", "problem_sha256", "sample"),
    *("prompt_sha256", "completion", "tokens", "finish_reason"),
)
"""Fields of a line that generation wrote; the others are computed again."""


@final
class Sample(TypedDict, total=False):
    """One completion, or the likelihoods of one problem's choices. Benchmarks may add further fields.

    Attributes:
        benchmark, variant, stage: what was run.
        scorer: that of the headline.
        problem, problem_sha256: the problem's id, and the hash of its content.
        sample: number of the completion of this problem, from 0.
        temperature: of the sampling; 0 is greedy.
        prompt_sha256: hash of the prompt's text.
        completion: text; of choices the one that the model prefers.
        tokens: of the completion.
        finish_reason: ``stop``, ``length`` (cut off), ``prompt-too-long`` (not sent), ``scored`` (choices).
        answers: by extractor; None where it finds none.
        verdicts: by scorer, see `grading.metrics.Verdict`; ``stereotype`` or ``other`` where no answer is right.
        scores: by metric, scores that are no verdicts, such as F1.
        values: by scorer, lm-evaluation-harness's own numbers of the problem.
        prompt: end of the prompt's text, of lm-evaluation-harness's tasks.
        gold: the right answer, of choices its index; None where none is right.
        kind, detail: of programs, how the run ended.
        loglikelihoods, token_counts, character_counts, greedy: of choices, one a request; nats, of the continuations,
            and whether the continuation is what greedy decoding gives.
        choice: index of the preferred request.
        cut: ids that did not fit the context, summed over the requests.
    """

    benchmark: Required[str]
    variant: Required[str]
    stage: Required[Literal["pretrained", "finetuned"]]
    scorer: Required[str]
    problem: Required[str]
    problem_sha256: Required[str]
    sample: Required[int]
    temperature: Required[float]
    prompt_sha256: Required[str]
    completion: Required[str]
    tokens: Required[int]
    finish_reason: Required[str]
    answers: dict[str, str | None]
    verdicts: dict[str, str]
    scores: dict[str, float]
    values: dict[str, Any]
    prompt: str
    gold: Any
    kind: str
    detail: str
    loglikelihoods: list[float]
    token_counts: list[int]
    character_counts: list[int]
    greedy: list[bool]
    choice: int
    cut: int


@final
class Window(TypedDict):
    """One window of a perplexity.

    Attributes:
        index: of the window, from 0.
        nll: negative log-likelihood in nats, summed over the predicted tokens.
        tokens: that are predicted.
    """

    index: int
    nll: float
    tokens: int


def parse_samples(lines: Iterable[str]) -> list[Sample]:
    """Parse the lines of completions; raise a `UserError` with the line's number for what is none."""
    parsed = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = getattr(error, "msg", "nested too deeply")
            raise UserError(
                f"line {number} of the samples is not JSON ({reason}); the file is damaged, evaluate again"
            ) from error
        missing = [name for name in GENERATED if not isinstance(line, dict) or name not in line]
        if missing:
            raise UserError(
                f"line {number} of the samples has no '{missing[0]}'; only samples of generating benchmarks, written "
                "by this version or a newer one, can be used: evaluate again"
            )
        parsed.append(cast(Sample, line))
    return parsed


def open_samples(path: Path) -> io.TextIOWrapper:
    """Open a file of samples as text; raises an OSError where it is no regular file."""
    return io.TextIOWrapper(open_regular(path), encoding="utf-8")


def read_samples(path: Path) -> Iterator[Sample | Window]:
    """Yield the lines of a file one by one, without checking their fields.

    Raises:
        OSError, ValueError: no file, or no lines of JSON.
    """
    with open_samples(path) as file:
        for text in file:
            if text.strip():
                try:
                    yield json.loads(text)
                except RecursionError as error:
                    raise ValueError("nested too deeply") from error
