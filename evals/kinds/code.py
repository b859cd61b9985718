"""Benchmarks whose answer is a program: how the program is cut out of a completion, and pass@1 in the sandbox."""

from __future__ import annotations

import ast
import builtins
import re
import textwrap
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ...foundation.errors import UserError
from ...foundation.progress import counting
from ..base import EvalSettings
from ..grading.sandbox.isolation import isolation_level
from ..grading.sandbox.packages import offered_versions
from ..grading.sandbox.programs import DEFAULT_TIMEOUT_SECONDS, RULES_VERSION, Job, run_programs
from .generative import GenerativeBenchmark, Scored, storable

CODE_RULES_VERSION = 2
"""Raised whenever a program is cut out of a completion in another way."""

HUMANEVAL_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Stop strings of Chen et al. 2021, section 2.3, and of lm-evaluation-harness."""

_FENCE = "```"
_FENCE_LANGUAGES = ("", "python", "py", "python3", "py3")


class CodeBenchmark(GenerativeBenchmark):
    """Programs judged by tests; the headline is pass@1, of one greedy program per problem or of several samples."""

    runs_code = True
    metric = "pass@1"

    @abstractmethod
    def job(self, row: Mapping[str, Any], text: str, settings: EvalSettings) -> Job:
        """Return the program in a completion and the problem's test."""

    def problem_id(self, row: Mapping[str, Any], index: int) -> str:
        """Return the task's published id."""
        return str(row["task_id"])

    def headline(self, settings: EvalSettings) -> str:
        """There is one scorer."""
        return "tests"

    def check(self, settings: EvalSettings) -> None:
        """Check data and isolation before anything is generated."""
        super().check(settings)
        isolation_level(settings.allow_weak_isolation)

    def rules(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return the versions of cutting and judging, the time limit, and what programs can import."""
        versions = {"code": CODE_RULES_VERSION, "judge": RULES_VERSION, "packages": dict(offered_versions())}
        return versions | {"timeout_seconds": DEFAULT_TIMEOUT_SECONDS}

    def score(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], settings: EvalSettings
    ) -> tuple[list[Scored], dict[str, Any]]:
        """Run every program against its test."""
        level = isolation_level(settings.allow_weak_isolation)
        jobs = [self.job(row, text, settings) for row, text in zip(rows, texts, strict=True)]
        verdicts = run_programs(jobs, level, progress=counting("programs"))
        scored = [
            Scored(
                {"program": job.program},
                {"tests": "correct" if verdict.passed else "timeout" if verdict.kind == "timeout" else "wrong"},
                {
                    "kind": verdict.kind,
                    "detail": storable(verdict.detail),
                    "seconds": round(verdict.seconds, 3),
                    "reruns": verdict.reruns,
                    "judged_in_process": verdict.together,
                },
            )
            for job, verdict in zip(jobs, verdicts, strict=True)
        ]
        missing = Counter(
            storable(verdict.detail).partition("'")[2].partition("'")[0].partition(".")[0]
            for verdict in verdicts
            if verdict.kind == "missing-package"
        )
        details = {
            "isolation": level,
            "kinds": dict(sorted(Counter(verdict.kind for verdict in verdicts).items())),
            "judged_in_process": sum(verdict.together for verdict in verdicts),
            "packages": dict(offered_versions()),
            "missing_packages": dict(sorted(missing.items())),
        }
        return scored, details


def unfence(text: str) -> str:
    """Return the content of the first Markdown code block, or the text itself where there is none."""
    code, start = text, 0
    while (end := text.find("\n", start)) >= 0:
        # Line by line, so that the work stays linear in the text whatever a model writes.
        _, fence, language = text[start:end].removesuffix("\r").rpartition(_FENCE)
        start = end + 1
        if fence and language.strip(" \t").lower() in _FENCE_LANGUAGES:
            code = text[start:].partition("\n" + _FENCE)[0]
            break
    return code.replace("\r\n", "\n")


def function_program(prompt: str, completion: str, entry_point: str) -> str:
    """Join a function's signature and docstring with what an instruction-tuned model answered.

    A complete function replaces the one that the prompt begins; a body continues it, and is indented if it is not.
    """
    code = unfence(completion)
    if re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", code, re.MULTILINE):
        # The prompt stays in front for its imports and helpers; of two definitions with one name the later one counts.
        return f"{prompt}\n{code}"
    if code.strip() and not code.lstrip("\n")[:1].isspace():
        code = textwrap.indent(code, "    ")
    return prompt + code


def tested_names(asserts: str) -> tuple[str, ...]:
    """Return what given asserts need from a program: the free names that are no builtins.

    Raises:
        UserError: the asserts are no Python, or use nothing of a program.
    """
    try:
        names = tuple(sorted(name for name in free_names(asserts) if not hasattr(builtins, name)))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"the reference is no Python ({error}); write asserts such as 'assert f(1) == 2'") from None
    if not names:
        raise UserError("the reference calls no function of a program; write asserts such as 'assert f(1) == 2'")
    return names


def free_names(source: str) -> set[str]:
    """Return the names that a test reads and does not itself bind, builtins among them."""
    loaded: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (loaded if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            bound.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return loaded - bound
