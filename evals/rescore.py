"""Scoring stored completions with today's rules, without a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ..foundation.errors import UserError
from ..foundation.files import digest
from .base import Benchmark, EvalSettings, Outcome
from .kinds.choice import SCORED, ChoiceBenchmark
from .kinds.generative import GenerativeBenchmark
from .samples import GENERATED, Sample


def rescore(lines: Iterable[Sample], benchmark: Benchmark, settings: EvalSettings) -> Outcome:
    """Score stored completions again, by the code path of an evaluation.

    Args:
        lines: sample lines of one evaluation, in any order (`samples.parse_samples` parses a file's).
        benchmark: the benchmark that they belong to; its problems are loaded again.
        settings: where the data are, and isolation; stage, samples and temperature are those of the lines.

    Raises:
        UserError: other benchmark; no lines; problems that are not those of the dataset as it is now; problems with
            differing numbers of samples.
    """
    fields = (*GENERATED, *SCORED) if isinstance(benchmark, ChoiceBenchmark) else GENERATED
    stored: list[dict[str, Any]] = [{name: value for name, value in line.items() if name in fields} for line in lines]
    if not stored:
        raise UserError("there are no samples to score; name a run whose samples.jsonl is not empty")
    if not isinstance(benchmark, GenerativeBenchmark | ChoiceBenchmark) or {line["benchmark"] for line in stored} != {
        benchmark.name
    }:
        names = ", ".join(sorted({str(line["benchmark"]) for line in stored}))
        raise UserError(
            f"these samples are of benchmark {names}, not '{benchmark.name}'; rescore them as what they are"
        )
    # Without a limit, because the lines say themselves which problems there were.
    settings = replace(settings, stage=stored[0]["stage"], temperature=stored[0]["temperature"], limit=None)
    rows = {benchmark.problem_id(row, index): row for index, row in enumerate(benchmark.data(settings).rows)}
    for line in stored:
        if line["problem"] not in rows or digest(dict(rows[line["problem"]])) != line["problem_sha256"]:
            raise UserError(
                f"problem '{line['problem']}' of these samples is not in the data of '{benchmark.name}' as they are "
                "now; pass --data with the dataset that the samples were drawn for"
            )
    positions = {problem: index for index, problem in enumerate(rows)}
    stored.sort(key=lambda line: (positions[line["problem"]], line["sample"]))
    problems = list(dict.fromkeys(line["problem"] for line in stored))
    count = len(stored) // len(problems)
    if [(line["problem"], line["sample"]) for line in stored] != [(p, s) for p in problems for s in range(count)]:
        raise UserError(
            "these samples are not complete: every problem needs the same number of samples, each once; evaluate again"
        )
    if isinstance(benchmark, ChoiceBenchmark):
        return benchmark.judge([rows[problem] for problem in problems], stored, settings)
    for line in stored:
        line["scorer"] = benchmark.headline(settings)
    return benchmark.judge([rows[problem] for problem in problems], stored, replace(settings, samples=count))
