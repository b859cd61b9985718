"""Tasks: a target application with its finetuning data and its benchmarks.

Answers of `math` are brought into one form, so that one rule reads the answers of a finetuned model whatever it was
trained on: the solution, then a last line ``The answer is: X``, which is how MetaMathQA ends. GSM8K's ``#### 5``
becomes that line and its calculator marks (``<<48/2=24>>``) go; a MATH solution gets the content of its last
``\\boxed{}``, on one line. `toy-math` keeps GSM8K's own form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from ...foundation.errors import UserError, unknown
from ...foundation.files import digest
from ...foundation.progress import track
from ..base import benchmarks as benchmark_registry
from ..data.datasets import load_rows
from ..grading.extract import last_boxed
from .commonsense import arc_validation, mixture
from .prompts import Encoded, encode_documents, encode_example, encode_joined, finetuning_prompt
from .toy.code import TRAIN_PROBLEMS as TOY_CODE_TRAIN
from .toy.code import toy_code_problems
from .toy.math import TRAIN_PROBLEMS as TOY_MATH_TRAIN
from .toy.math import toy_math_problems

TINYSTORIES_TEST = 40
"""The first stories of `tinystories/train_head` are the benchmark, the rest is for training."""

C4_TEST = 200
"""The first documents of `c4/train_head` are the benchmark, the rest is for training and calibration."""

MBPP_INSTRUCTION = "{text}\nYour code should pass these tests:\n{tests}"
"""Instruction of MBPP tasks for finetuned models, in training and evaluation; after Austin et al. 2021."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")


@dataclass(frozen=True)
class Example:
    """One training example as text; the prompt is empty in language modelling."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class TrainSet:
    """Training examples, a hash over them, and where they came from."""

    examples: list[Example]
    sha256: str
    source: str


@dataclass(frozen=True)
class EncodedSet:
    """Token ids and labels of the examples that fit, and how many did not."""

    items: list[Encoded]
    dropped: int


Loader = Callable[[Path | None, int], tuple[list[Example], str]]


@dataclass(frozen=True)
class Task:
    """A target application.

    Attributes:
        name, summary: as listed.
        kind: ``instruction`` (prompt and answer, only the answer is learnt) or ``language`` (all is learnt).
        benchmarks: what a finetuned model is measured by; the first one is the task's headline.
        max_length: default of the longest training example, in tokens.
        pretrained_row: whether results also show the model before finetuning.
        joined: language modelling over one joined text rather than document by document.
        sources: names of training sets, the one for the hub first.
        local_source: default where local data are used.
    """

    name: str
    summary: str
    kind: Literal["instruction", "language"]
    benchmarks: tuple[str, ...]
    max_length: int
    loaders: dict[str, Loader] = field(repr=False)
    local_source: str = ""
    pretrained_row: bool = False
    joined: bool = False

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the training sets."""
        return tuple(self.loaders)

    def default_source(self, data_dir: Path | None) -> str:
        """Return the training set that is used unless another is named."""
        return self.local_source if data_dir is not None and self.local_source else self.sources[0]

    def train_examples(self, source: str | None, data_dir: Path | None, seed: int) -> TrainSet:
        """Return the training examples in their order of origin.

        Args:
            source: one of `sources`, or None for the default.
            data_dir: folder with local datasets, or None for the hub.
            seed: seed of generated data; others do not depend on it.
        """
        name = source or self.default_source(data_dir)
        if name not in self.loaders:
            raise unknown("training set", name, self.loaders, f" of task '{self.name}'")
        examples, origin = self.loaders[name](data_dir, seed)
        return TrainSet(examples, digest([[e.prompt, e.answer] for e in examples]), origin)

    def encode(self, tokenizer: Any, examples: list[Example], max_length: int, cut: bool = False) -> EncodedSet:
        """Turn examples into token ids and labels; instruction examples that are too long are dropped and counted.

        Args:
            tokenizer: of the model.
            examples: of this task.
            max_length: in tokens.
            cut: keep the beginning of examples that are too long, for statistics.
        """
        if self.kind == "language":
            texts = [example.answer for example in examples]
            encode = encode_joined if self.joined else encode_documents
            return EncodedSet(encode(tokenizer, texts, max_length), 0)
        encoded = [
            encode_example(tokenizer, e.prompt, e.answer, max_length, cut)
            for e in track(examples, unit="examples encoded")
        ]
        items = [item for item in encoded if item is not None]
        return EncodedSet(items, len(encoded) - len(items))


def gsm8k_answer(answer: str) -> str:
    """Rewrite a GSM8K answer for finetuning: no calculator marks, ``The answer is: N`` in place of ``#### N``."""
    solution, _, number = _CALCULATOR.sub("", answer).rpartition("####")
    return f"{solution.strip()}\nThe answer is: {number.strip().replace(',', '')}"


def math_answer(solution: str) -> str:
    """Rewrite a MATH solution for finetuning: the content of its last ``\\boxed{}`` as ``The answer is: X``."""
    boxed = last_boxed(solution)
    return solution if boxed is None else f"{solution.strip()}\nThe answer is: {' '.join(boxed.split())}"


def mbpp_instruction(row: dict[str, Any]) -> str:
    """Return the instruction of an MBPP task: its text and its three tests, as the published prompt shows them."""
    return MBPP_INSTRUCTION.format(text=row["text"].strip(), tests="\n".join(row["test_list"]))


def unix(code: str) -> str:
    """Normalise line ends; MBPP's gold code has ``\\r\\n``."""
    return code.replace("\r\n", "\n")


def _metamathqa(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("metamathqa", "train", data_dir)
    return [Example(finetuning_prompt(r["query"]), r["response"]) for r in data.rows], data.source


def _gsm8k(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("gsm8k", "train", data_dir)
    return [Example(finetuning_prompt(r["question"]), gsm8k_answer(r["answer"])) for r in data.rows], data.source


def _gsm8k_and_math(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    examples, origin = _gsm8k(data_dir, seed)
    data = load_rows("math", "train", data_dir)
    math_examples = [Example(finetuning_prompt(r["problem"]), math_answer(r["solution"])) for r in data.rows]
    return examples + math_examples, f"{origin}+{data.source}"


def _codealpaca(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("codealpaca", "train", data_dir)
    pairs = [("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in data.rows]
    return [Example(finetuning_prompt(i), unix(o)) for i, o in pairs if i.strip() and o.strip()], data.source


def _mbpp(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("mbpp", "train", data_dir)
    return [Example(finetuning_prompt(mbpp_instruction(r)), unix(r["code"])) for r in data.rows], data.source


def _tinystories(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("tinystories", "train_head", data_dir)
    return [Example("", r["text"]) for r in data.rows[TINYSTORIES_TEST:]], data.source


def _wikitext2(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("wikitext2", "train", data_dir)
    return [Example("", r["text"]) for r in data.rows], data.source


def _c4(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    data = load_rows("c4", "train_head", data_dir)
    return [Example("", r["text"]) for r in data.rows[C4_TEST:]], data.source


def _sfsd_mixture(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    texts, source = mixture(data_dir)
    return [Example("", text) for text in texts], source


def _arc_validation(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    texts, source = arc_validation(data_dir)
    return [Example("", text) for text in texts], source


def _toy_math(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    rows = toy_math_problems("train", TOY_MATH_TRAIN, seed)
    return [Example(finetuning_prompt(r["question"], "question"), r["answer"]) for r in rows], f"generated:{seed}"


def _toy_code(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    rows = toy_code_problems("train", TOY_CODE_TRAIN, seed)
    return [
        Example(finetuning_prompt(r["prompt"], "plain"), r["canonical_solution"]) for r in rows
    ], f"generated:{seed}"


_TASKS = (
    Task(
        "math",
        "word problems and competition mathematics",
        "instruction",
        ("gsm8k", "math"),
        512,
        {"metamathqa": _metamathqa, "gsm8k+math": _gsm8k_and_math, "gsm8k": _gsm8k},
        local_source="gsm8k+math",
    ),
    Task(
        "code",
        "Python functions that pass their tests",
        "instruction",
        ("humaneval", "mbpp"),
        512,
        {"codealpaca": _codealpaca, "mbpp": _mbpp},
        local_source="mbpp",
    ),
    Task(
        "language",
        "perplexity of short stories (TinyStories)",
        "language",
        ("tinystories",),
        512,
        {"tinystories": _tinystories},
        pretrained_row=True,
    ),
    Task(
        "language-wikitext2",
        "perplexity of encyclopedia articles (WikiText-2)",
        "language",
        ("wikitext2",),
        1024,
        {"wikitext2": _wikitext2},
        pretrained_row=True,
        joined=True,
    ),
    Task(
        "language-c4",
        "perplexity of web pages (C4)",
        "language",
        ("c4",),
        1024,
        {"c4": _c4},
        pretrained_row=True,
        joined=True,
    ),
    # Local data have no training splits of these tasks, so that ARC's validation split serves there; a split that is
    # evaluated never does.
    Task(
        "commonsense",
        "multiple choice by likelihood, the seven tasks of the low-rank papers",
        "language",
        ("piqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "boolq", "openbookqa"),
        512,
        {"sfsd-mixture": _sfsd_mixture, "arc-validation": _arc_validation, "c4": _c4, "tinystories": _tinystories},
        local_source="arc-validation",
        pretrained_row=True,
    ),
    Task(
        "bias",
        "stereotypes in what a model finds likely (CrowS-Pairs, StereoSet, WinoBias)",
        "language",
        ("crows-pairs", "stereoset", "winobias"),
        512,
        {"c4": _c4, "tinystories": _tinystories, "wikitext2": _wikitext2},
        pretrained_row=True,
    ),
    Task(
        "toy-math",
        "generated two-step word problems in GSM8K's format",
        "instruction",
        ("toy-math",),
        256,
        {"generated": _toy_math},
    ),
    Task(
        "toy-code",
        "generated one-line functions in HumanEval's format",
        "instruction",
        ("toy-code",),
        256,
        {"generated": _toy_code},
    ),
)
tasks: dict[str, Task] = {task.name: task for task in _TASKS}


PUBLISHED = "lowrank_bench.tasks"
"""Entry point group in which other packages publish a `Task`."""


def all_tasks() -> dict[str, Task]:
    """Return every task by name: the built-in ones, then those that other packages publish.

    Raises:
        UserError: a published task cannot be imported, is none, or has a name that is taken.
    """
    known = dict(tasks)
    for point in entry_points(group=PUBLISHED):
        try:
            task = point.load()
        except Exception as error:
            raise UserError(
                f"task '{point.name}' of {point.value} cannot be imported ({error}); mend or uninstall it"
            ) from error
        if not isinstance(task, Task) or task.name != point.name:
            raise UserError(f"{point.value} is no task '{point.name}'; publish a lowrank_bench.Task under its own name")
        if known.setdefault(task.name, task) is not task:
            raise UserError(f"task '{task.name}' of {point.value} has a name that is taken; rename or uninstall it")
    return known


def get_task(name: str) -> Task:
    """Return a task; raise a `UserError` with the nearest name if there is none."""
    if name in tasks:
        return tasks[name]
    known = all_tasks()
    if name not in known:
        raise unknown("task", name, known)
    return known[name]


def benchmark_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return registered benchmark names for what was typed: a task means its benchmarks, ``_`` means ``-``.

    Raises:
        UserError: a name that is neither; with the nearest one.
    """
    known, known_tasks, benchmarks = set(benchmark_registry.names()), all_tasks(), []
    for name in names:
        plain = name.replace("_", "-")
        if plain in known:
            benchmarks.append(plain)
        elif plain in known_tasks:
            benchmarks += known_tasks[plain].benchmarks
        else:
            raise unknown("benchmark", name, known)
    return tuple(dict.fromkeys(benchmarks))
