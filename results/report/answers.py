"""One pass over the samples of a run: verdicts for paired tests, counts and examples of failures."""

from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...evals.kinds.generative import TOO_LONG
from ...foundation.files import open_regular
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
        solved: by problem, the hashes of data and prompt, and the share of its samples that are right.
        greedy: whether there is one greedy sample a problem.
        windows: (nll, tokens) of each window of a perplexity, by its index.
        counts: completions by kind of failure; ``correct`` among them.
        examples: first lines of each kind of failure.
        graded: whether verdicts say right or wrong (those of a bias do not).
    """

    solved: dict[str, tuple[str, float]] = field(default_factory=dict)
    greedy: bool = True
    windows: dict[int, tuple[float, int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    graded: bool = True


def read_answers(path: Path) -> Answers | None:
    """Read a samples file; None where it is missing or damaged."""
    answers, solved = Answers(), dict[str, tuple[str, list[bool]]]()
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            for text in file:
                if text.strip():
                    _take(answers, solved, json.loads(text))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    answers.greedy &= all(len(hits) == 1 for _, hits in solved.values())
    answers.solved = {name: (identity, sum(hits) / len(hits)) for name, (identity, hits) in solved.items()}
    return answers


def _take(answers: Answers, solved: dict[str, tuple[str, list[bool]]], line: dict[str, Any]) -> None:
    if "nll" in line:
        answers.windows[int(line["index"])] = float(line["nll"]), int(line["tokens"])
        return
    verdict = line["verdicts"][line["scorer"]]
    if verdict not in VERDICTS:
        answers.graded = False
        return
    identity = f"{line['problem_sha256']} {line['prompt_sha256']}"
    solved.setdefault(str(line["problem"]), (identity, []))[1].append(verdict == CORRECT)
    answers.greedy &= line["temperature"] == 0
    kind = failure(line)
    answers.counts[kind] += 1
    examples = answers.examples.setdefault(kind, [])
    if kind != CORRECT and len(examples) < EXAMPLES:
        examples.append(line)


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
