"""Training text of the commonsense tasks: a question with its right answer, as one text.

SFSD calibrates on equal parts of the training splits of six of the tasks (nyunAI/SFSD-LLM, ``decomposer.py``,
"combination"). The texts here are those that the benchmarks' prompts and right answers make when put together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.datasets import load_rows

MIXTURE = ("piqa", "boolq", "arc_challenge", "arc_easy", "winogrande", "hellaswag")
"""The six tasks of SFSD's mixture; OpenBookQA is evaluated in other papers and not part of it."""

_BRACKETS = re.compile(r"\[.*?\]")


def answered(name: str, row: Mapping[str, Any]) -> str:
    """Return one record's question and right answer as text.

    Args:
        name: dataset.
        row: a record of it.
    """
    if name == "piqa":
        return f"Question: {row['goal']}\nAnswer: {row['sol2' if row['label'] else 'sol1']}"
    if name == "boolq":
        return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer: {'yes' if row['label'] else 'no'}"
    if name == "winogrande":
        before, _, after = row["sentence"].partition("_")
        return f"{before}{row['option' + row['answer']]}{after}"
    if name == "hellaswag":
        text = (
            f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()} {row['endings'][int(row['label'])]}"
        )
        return " ".join(_BRACKETS.sub("", text.replace(" [title]", ". ")).split())
    choice = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"].strip())]
    if name == "openbookqa":
        return f"{row['question_stem']} {choice}"
    return f"Question: {row['question']}\nAnswer: {choice}"


def mixture(data_dir: Path | None) -> tuple[list[str], str]:
    """Return equally many training texts of each of the six tasks, in turn, and where they came from."""
    loaded = {name: load_rows(name, "train", data_dir) for name in MIXTURE}
    count = min(len(data.rows) for data in loaded.values())
    texts = [answered(name, data.rows[index]) for index in range(count) for name, data in loaded.items()]
    return texts, "+".join(data.source for data in loaded.values())


def arc_validation(data_dir: Path | None) -> tuple[list[str], str]:
    """Return the texts of both validation splits of ARC, whose test splits are the benchmarks.

    Two questions are asked again in a test split, with other choices; they are left out.
    """
    names = ("arc_easy", "arc_challenge")
    test_questions = {row["question"] for name in names for row in load_rows(name, "test", data_dir).rows}
    loaded = {name: load_rows(name, "validation", data_dir) for name in names}
    texts = [
        answered(name, row)
        for name, data in loaded.items()
        for row in data.rows
        if row["question"] not in test_questions
    ]
    return texts, "+".join(data.source for data in loaded.values())
