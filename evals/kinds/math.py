"""What `math` and `math500` share: Minerva's four examples, prompts and stop rules by stage, scoring, groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from ...foundation.errors import UserError
from ..base import EvalSettings
from ..grading.extract import last_boxed
from ..grading.math.rules import library_versions, rules, score_texts
from ..tasks.prompts import finetuning_prompt
from .generative import GenerativeBenchmark, Scored, cached_rows, prompt_name

EXAMPLES = {
    "ec12d949": "train/algebra/943.json",
    "9dbd8fb8": "train/precalculus/372.json",
    "cb0a71d6": "train/algebra/256.json",
    "20c3e8cc": "train/algebra/1951.json",
}
"""The four training problems of the Minerva prompt: first digits of the sha256 of the problem's text, without white
space, and the file of the published archive that it comes from. Datasets differ in the order of their records."""

_ENDING = "\nFinal Answer: The final answer is ${answer}$. I hope it is correct."


class MathBenchmark(GenerativeBenchmark):
    """Competition problems whose reference answer is the content of the solution's last ``\\boxed{}``.

    Headline: `minerva` before finetuning, `answer-is` after it.
    """

    new_tokens = 512

    def variant(self, settings: EvalSettings) -> str:
        """Name shots and prompt."""
        return (
            f"{self.name}-0shot-{prompt_name(settings)}"
            if settings.stage == "finetuned"
            else f"{self.name}-4shot-minerva"
        )

    def headline(self, settings: EvalSettings) -> str:
        """Return the headline's scorer."""
        return "answer-is" if settings.stage == "finetuned" else "minerva"

    def check(self, settings: EvalSettings) -> None:
        """Look for the libraries, and for the training split where examples are shown."""
        super().check(settings)
        library_versions()
        self.prompts([], settings)

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the few-shot or the finetuning prompt of each problem."""
        if settings.stage == "finetuned":
            return [finetuning_prompt(row["problem"], chat=settings.chat) for row in rows]
        examples_text = "".join(
            f"{_question(row)} {row['solution']}{_ENDING.replace('{answer}', last_boxed(row['solution']) or '')}\n\n"
            for row in minerva_examples(cached_rows("math", "train", settings.data_dir).rows)
        )
        return [examples_text + _question(row) for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """Return the reference's stop string before finetuning; a finetuned model ends by itself."""
        return ("\n### Instruction",) if settings.stage == "finetuned" else ("Problem:",)

    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return scorers, versions, limits and the headline."""
        return {**rules(), "headline": self.headline(settings)}

    def groups(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return subject and level."""
        subject = str(row.get("type") or row.get("subject")).lower().replace("&", "and").replace(" ", "-")
        return subject, f"level-{str(row['level']).removeprefix('Level ')}"

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a problem with this answer in LaTeX, or with this solution that has a ``\\boxed{}`` answer."""
        solution = gold if last_boxed(gold) is not None else f"\\boxed{{{gold.strip()}}}"
        if not gold.strip() or (last_boxed(solution) != gold.strip() and solution is not gold):
            raise UserError(
                f"the reference answer '{gold}' is no LaTeX with balanced braces; write what \\boxed{{}} would hold, "
                "such as \\frac{3}{4}, or a whole solution with \\boxed{\\frac{3}{4}}"
            )
        return {"problem": "", "solution": solution}

    def score(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], settings: EvalSettings
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Score every completion by every rule."""
        return score_texts(texts, [reference_answer(row) for row in rows]), {"libraries": library_versions()}


def reference_answer(row: Mapping[str, Any]) -> str:
    """Return the content of the solution's last ``\\boxed{}``."""
    answer = last_boxed(row["solution"])
    if answer is None:
        raise UserError(f"a MATH solution has no \\boxed{{}} answer: {row['solution'][-80:]!r}; fetch the data again")
    return answer


def minerva_examples(train: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Find the prompt's four problems in the training split, in the prompt's order."""
    examples = {key: row for row in train if (key := problem_key(row["problem"])) in EXAMPLES}
    for key, file in EXAMPLES.items():
        if key not in examples:
            raise UserError(f"the training split of MATH lacks the example problem '{file}'; fetch the data again")
    return [examples[key] for key in EXAMPLES]


def problem_key(problem: str) -> str:
    """Return the digits by which `EXAMPLES` names a problem."""
    return sha256("".join(problem.split()).encode()).hexdigest()[:8]


def _question(row: Mapping[str, Any]) -> str:
    return f"Problem:\n{row['problem']}\n\nSolution:"
