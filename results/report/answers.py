"""One pass over the samples of a run: counts and examples of failures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ...evals.kinds.generative import TOO_LONG
from ...evals.samples import Sample, Window, read_samples
from ..samples.compare import VERDICTS

EXAMPLES = 2
"""Examples of a kind that are kept of one evaluation."""

_PROGRAMS = {
    "wrong": "wrong answer",
    "exception": "program raises",
    "syntax": "syntax error",
    "memory": "out of memory",
    "missing-package": "missing package",
    "timeout": "time-out",
}


@dataclass
class Answers:
    """What the report keeps of one evaluation's samples.

    Attributes:
        counts: completions by kind of failure; ``correct`` among them.
        examples: first lines of each kind of failure.
        graded: whether verdicts say right or wrong (those of a bias do not).
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Sample]] = field(default_factory=dict)
    graded: bool = True


def read_answers(path: Path) -> Answers | None:
    """Read a samples file; None where it is missing or damaged."""
    answers = Answers()
    try:
        for line in read_samples(path):
            _take(answers, line)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return answers


def _take(answers: Answers, line: Sample | Window) -> None:
    if "nll" in line:
        return
    verdict = line["verdicts"][line["scorer"]]
    if verdict not in VERDICTS:
        answers.graded = False
        return
    kind = failure(line)
    answers.counts[kind] += 1
    examples = answers.examples.setdefault(kind, [])
    if kind != CORRECT and len(examples) < EXAMPLES:
        examples.append(line)


CORRECT = "correct"


def failure(line: Sample) -> str:
    """Say what is wrong with a completion, the most telling first; ``correct`` where nothing is."""
    verdict = line["verdicts"][line["scorer"]]
    if verdict == CORRECT:
        return CORRECT
    if line["finish_reason"] == TOO_LONG:
        return "prompt too long"
    # Before the verdicts: a completion that was cut off often has no answer for that reason alone.
    if line["finish_reason"] == "length":
        return "cut off at the token limit"
    if verdict == "timeout":
        return "time-out"
    if verdict == "no-answer":
        return "no answer found"
    kind = str(line.get("kind", "wrong"))
    return _PROGRAMS.get(kind, f"program ended: {kind}")
