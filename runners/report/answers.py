"""One pass over the samples of a run: verdicts for paired tests, counts and examples of failures."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...evals.compare import VERDICTS
from ...evals.generative import TOO_LONG

EXAMPLES = 2
"""Examples of a kind that are kept of one evaluation."""

_COMPARED = ("benchmark", "variant", "problem", "problem_sha256", "prompt_sha256", "scorer", "temperature")
_PROGRAMS = {
    "wrong": "wrong answer",
    "exception": "program raises",
    "syntax": "syntax error",
    "memory": "out of memory",
    "timeout": "time-out",
}


@dataclass
class Answers:
    """What the report keeps of one evaluation's samples.

    Attributes:
        lines: verdicts for `evals.compare.compare`, without texts.
        windows: (nll, tokens) of each window of a perplexity, by its index.
        counts: completions by kind of failure; ``correct`` among them.
        examples: first lines of each kind of failure.
        graded: whether verdicts say right or wrong (those of a bias do not).
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    windows: dict[int, tuple[float, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    graded: bool = True


def read_answers(path: Path) -> Answers | None:
    """Read a samples file; None where it is missing or damaged."""
    answers = Answers()
    try:
        with path.open(encoding="utf-8") as file:
            for text in file:
                if text.strip():
                    _take(answers, json.loads(text))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answers


def _take(answers: Answers, line: dict[str, Any]) -> None:
    if "nll" in line:
        answers.windows[int(line["index"])] = float(line["nll"]), int(line["tokens"])
        return
    verdict = line["verdicts"][line["scorer"]]
    answers.lines.append({name: line[name] for name in _COMPARED} | {"verdicts": {line["scorer"]: verdict}})
    if verdict not in VERDICTS:
        answers.graded = False
        return
    kind = failure(line)
    answers.counts[kind] += 1
    kept = answers.examples.setdefault(kind, [])
    if kind != CORRECT and len(kept) < EXAMPLES:
        kept.append(line)


CORRECT = "correct"


def failure(line: dict[str, Any]) -> str:
    """Say what is wrong with a completion, the most telling first; ``correct`` where nothing is."""
    verdict = line["verdicts"][line["scorer"]]
    if verdict == CORRECT:
        return CORRECT
    if line["finish_reason"] == TOO_LONG:
        return "prompt too long"
    if line["finish_reason"] == "length":
        return "cut off at the token limit"
    if verdict == "timeout":
        return "time-out"
    if verdict == "no-answer":
        return "no answer found"
    kind = str(line.get("kind", "wrong"))
    return _PROGRAMS.get(kind, f"program ended: {kind}")
