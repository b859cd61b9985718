"""Scoring one completion that a person gives, so that they can ask why it counts as it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..foundation.errors import UserError, did_you_mean
from .base import Benchmark, EvalSettings
from .kinds.generative import GenerativeBenchmark, Row, Scored, storable


@dataclass(frozen=True)
class ScoredCompletion:
    """What the scorers say of one completion.

    Attributes:
        headline: the scorer that counts at this stage.
        scorers: per scorer ``answer`` (text, or None where it extracts none) and ``verdict``; of a benchmark that runs
            code also ``kind``, ``detail``, ``isolation`` and what else a sample's line has.
        stop: the first stop string in the completion, at which an evaluation would have ended it; empty if none.
    """

    headline: str
    scorers: dict[str, dict[str, Any]]
    stop: str


def score_completion(
    benchmark: Benchmark, completion: str, settings: EvalSettings, gold: str | None = None, item: str | None = None
) -> ScoredCompletion:
    """Score one completion by the code path of an evaluation; nothing is cut off at stop strings.

    Args:
        benchmark: one that generates.
        completion: what the model answered, without the prompt.
        settings: the stage, which decides headline and how a program is cut out; data folder and isolation.
        gold: the reference answer, see `GenerativeBenchmark.reference_row`.
        item: instead of ``gold``, the id of one of the benchmark's problems.

    Raises:
        UserError: a benchmark without completions; both or none of gold and item; an unreadable gold, an unknown item.
    """
    if not isinstance(benchmark, GenerativeBenchmark):
        raise UserError(
            f"benchmark '{benchmark.name}' has no completion that can be scored alone: it compares likelihoods, or "
            "lm-eval scores it; name one that generates, such as gsm8k, math, humaneval or mbpp"
        )
    if (gold is None) == (item is None):
        raise UserError(
            "one reference is needed: --gold with the right answer (for code: its asserts), or --item with the id of "
            f"one of the problems of '{benchmark.name}'"
        )
    row = benchmark.reference_row(gold) if gold is not None else _find_row(benchmark, item or "", settings)
    (scored,), details = benchmark.score([row], [storable(completion)], settings)
    starts = {stop: completion.find(stop) for stop in benchmark.stops(settings) if stop in completion}
    return ScoredCompletion(
        benchmark.headline(settings),
        {name: _fields(scored, name, details) for name in scored.verdicts},
        min(starts, key=lambda stop: starts[stop], default=""),
    )


def _find_row(benchmark: GenerativeBenchmark, item: str, settings: EvalSettings) -> Row:
    """Return the problem with this id."""
    rows = {benchmark.problem_id(row, index): row for index, row in enumerate(benchmark.data(settings).rows)}
    if item not in rows:
        ids = list(rows)
        raise UserError(
            f"'{benchmark.name}' has no problem '{item}'{did_you_mean(item, ids) or ';'} its {len(ids):,} ids go from "
            f"{ids[0]} to {ids[-1]}, and bench show prints them beside stored completions"
        )
    return rows[item]


def _fields(scored: Scored, name: str, details: dict[str, Any]) -> dict[str, Any]:
    """Return one scorer's answer and verdict, and what else is known where code was run."""
    if name in scored.answers:
        return {"answer": scored.answers[name], "verdict": scored.verdicts[name]}
    (program,) = scored.answers.values()  # the one scorer of code is `tests`, and what it judges is the program
    return {"answer": program, "verdict": scored.verdicts[name], **scored.extra, "isolation": details["isolation"]}
