"""Benchmarks whose answer is one number: several readings of the same completion, one of them the headline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ...foundation.errors import UserError
from ..base import EvalSettings
from ..grading import extract
from ..grading.metrics import Verdict
from .generative import GenerativeBenchmark, Scored


class Reading(NamedTuple):
    """How an answer is read from a completion and compared with the reference answer."""

    extract: Callable[[str], str | None]
    same: Callable[[str, str], bool]


READINGS: dict[str, Reading] = {
    "strict": Reading(extract.strict, extract.same_text),
    "flexible": Reading(extract.flexible, extract.same_text),
    "answer-is": Reading(extract.answer_is, extract.same_number),
    "boxed": Reading(extract.boxed, extract.same_number),
}


class NumberBenchmark(GenerativeBenchmark):
    """Word problems whose answer is a number, in GSM8K's fields: ``question``, and ``answer`` ending in ``#### N``."""

    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return the readings, their version and the headline."""
        return {"version": extract.RULES_VERSION, "scorers": sorted(READINGS), "headline": self.headline(settings)}

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem with this number, or with this solution that ends in ``#### N``."""
        if extract.strict(gold) is not None:
            return {"question": "", "answer": gold}
        number = gold.strip().replace("$", "").replace("\N{MINUS SIGN}", "-")
        if not number or extract.strict(f"#### {number}") != number:
            raise UserError(
                f"the reference answer '{gold}' is no number; write 18, -5, 3.5 or 1,000, or a whole solution that "
                "ends in '#### 18'"
            )
        return {"question": "", "answer": f"#### {number}"}

    def score(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], settings: EvalSettings
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Read every completion in every way."""
        return [score_number(text, row["answer"]) for row, text in zip(rows, texts, strict=True)], {}


def score_number(text: str, answer: str) -> Scored:
    """Return each reading's answer and verdict, and the reference answer."""
    gold = extract.strict(answer)
    if gold is None:
        raise ValueError(f"the reference answer has no '#### N': {answer!r}")
    answers = {name: reading.extract(text) for name, reading in READINGS.items()}
    verdicts: dict[str, Verdict] = {}
    for name, extracted in answers.items():
        same = extracted is not None and READINGS[name].same(extracted, gold)
        verdicts[name] = "no-answer" if extracted is None else "correct" if same else "wrong"
    return Scored(answers, verdicts, {"gold": gold})
