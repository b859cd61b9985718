"""MBPP: 500 small programming tasks, test split, with their three asserts in the prompt (Austin et al. 2021).

Before finetuning the model gets tasks 2, 3 and 4 as examples and ends with ``[DONE]``, as in the paper and in
lm-evaluation-harness `mbpp`. After it the model gets the finetuning prompt. The score is the same three asserts.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..grading.sandbox.programs import Job
from ..kinds.code import CodeBenchmark, free_names, tested_names, unfence
from ..kinds.generative import cached_rows, prompt_name
from ..tasks.library.code import mbpp_instruction, unix
from ..tasks.prompts import finetuning_prompt

EXAMPLE_TASK_IDS = (2, 3, 4)
_PROMPT = (
    "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n{tests}\n"
    "[BEGIN]\n"
)


@benchmarks.register("mbpp")
class Mbpp(CodeBenchmark):
    """pass@1, greedy, over the 500 test tasks."""

    def variant(self, settings: EvalSettings) -> str:
        """Name tasks, shots and prompt."""
        return f"mbpp-500-0shot-{prompt_name(settings)}" if settings.stage == "finetuned" else "mbpp-500-3shot"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the test tasks."""
        return cached_rows("mbpp", "test", settings.data_dir)

    def check(self, settings: EvalSettings) -> None:
        """Look for the example tasks too where they are shown."""
        super().check(settings)
        self.prompts([], settings)

    def prompts(self, rows: Sequence[Mapping[str, Any]], settings: EvalSettings) -> list[str]:
        """Return the few-shot or the finetuning prompt of each task."""
        if settings.stage == "finetuned":
            return [finetuning_prompt(mbpp_instruction(dict(row)), chat=settings.chat) for row in rows]
        examples = {row["task_id"]: row for row in cached_rows("mbpp", "prompt", settings.data_dir).rows}
        shots = [f"{_task(examples[i])}{unix(examples[i]['code'])}\n[DONE]\n\n" for i in EXAMPLE_TASK_IDS]
        return ["".join(shots) + _task(row) for row in rows]

    def stops(self, settings: EvalSettings) -> tuple[str, ...]:
        """Return the reference's stop string before finetuning."""
        return ("\n### Instruction",) if settings.stage == "finetuned" else ("[DONE]",)

    def reference_row(self, gold: str) -> Mapping[str, Any]:
        """Return a task with these asserts and without a reference program."""
        tested_names(gold)
        return {"task_id": "", "text": "", "code": "", "test_setup_code": "", "test_list": [gold]}

    def job(self, row: Mapping[str, Any], text: str, settings: EvalSettings) -> Job:
        """Judge the code by the task's asserts."""
        return mbpp_job(row, unfence(text) if settings.stage == "finetuned" else text)


def _task(row: Mapping[str, Any]) -> str:
    return _PROMPT.format(text=row["text"], tests="\n".join(row["test_list"]))


class _Needs(NamedTuple):
    """What a task's tests need: names from the program, trusted imports, and whether live objects are passed."""

    names: tuple[str, ...]
    imports: str
    together: bool


def mbpp_job(row: Mapping[str, Any], program: str) -> Job:
    """Return the job of a program for one task.

    What the tests need is read from the tests and the reference solution, never from the model's program.
    """
    tests, setup = "\n".join(row["test_list"]) + "\n", unix(row["test_setup_code"])
    needs = _needs(tests, setup, unix(row["code"]))
    if needs.together:
        return Job(program, tests, needs.names, setup=setup, together=True)
    return Job(program, tests, needs.names, setup=f"{needs.imports}{setup}\n")


@lru_cache(maxsize=2048)
def _needs(tests: str, setup: str, gold: str) -> _Needs:
    body = ast.parse(gold).body
    own = {node.name for node in body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    # A function of the solution counts also where it has the name of a builtin.
    names = {name for name in free_names(f"{setup}\n{tests}") if name in own or not hasattr(builtins, name)}
    imports, classes = [], set()
    for node in body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            if bound & names:  # a test that uses `math` relies on the program's import of it
                imports.append(ast.unparse(node) + "\n")
                names -= bound
        elif isinstance(node, ast.ClassDef):
            classes.add(node.name)
    passes_function = any(isinstance(node, ast.Lambda) for node in ast.walk(ast.parse(tests)))
    together = bool(setup.strip()) or bool(names & classes) or passes_function
    return _Needs(tuple(sorted(names)), "".join(imports), together)
