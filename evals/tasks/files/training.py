"""The training data of a task file: read row by row, split by hash, counted on the way."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ....foundation.errors import UserError
from ....foundation.files import canonical_json
from ..base import Example
from ..chat import ASSISTANT, Conversation, Message
from .prompting import conversation, fill, instruction_columns, read_messages
from .rows import Row, cell_text, columns_of, read_rows, shown
from .schema import TaskFile

FORMS = ("text", "prompt-completion", "messages")
READING_VERSION = 1
"""Raised whenever the same rows become other examples; part of the hash of the data."""


@dataclass
class Counts:
    """What was met on the way.

    Attributes:
        rows: in the source.
        used: examples for training.
        held_out: rows that benchmarks without data of their own keep.
        empty: rows left out, because their prompt or answer is empty.
        converted: rows with a number, list or object where text is expected; it is read as JSON writes it.
        characters: of the training examples, prompts and answers.
        hashes: of all rows that are not empty; equal ones are kept.
    """

    rows: int = 0
    used: int = 0
    held_out: int = 0
    empty: int = 0
    converted: int = 0
    characters: int = 0
    hashes: array[int] = field(default_factory=lambda: array("Q"), repr=False)

    @property
    def duplicates(self) -> int:
        """How many rows are equal to an earlier one, by eight bytes of a hash each."""
        return len(self.hashes) - len(np.unique(np.frombuffer(self.hashes, dtype=np.uint64)))

    def card(self) -> dict[str, int]:
        """Return the numbers as plain data."""
        names = ("rows", "used", "held_out", "empty", "duplicates", "converted", "characters")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Layout:
    """How rows are read: the form and the columns."""

    form: str
    columns: tuple[str, ...]
    text: str = "text"
    prompt: str = "prompt"
    completion: str = "completion"
    messages: str = "messages"


def find_layout(definition: TaskFile) -> Layout:
    """Return how the training rows are read, from the task file and the columns that are there.

    Raises:
        UserError: no form fits the columns.
    """
    train = definition.train
    names, columns, form = columns_of(train), train.columns, train.form
    if form == "auto":
        named = [
            f
            for f, column in zip(
                FORMS, (columns.text, columns.prompt or columns.completion, columns.messages), strict=True
            )
            if column
        ]
        if len(named) > 1:
            raise UserError(
                f"train.columns names columns of two forms, {' and '.join(named)}; leave one out, or write train.form"
            )
        present = [
            form_
            for form_, needed in (
                ("messages", ["messages"]),
                ("prompt-completion", [columns.completion or "completion"]),
                ("text", ["text"]),
            )
            if set(needed) <= set(names)
        ]
        if not named and not present and definition.instruction is None:
            raise UserError(
                f"{shown(train)} has none of the columns 'messages', 'prompt' and 'completion', or 'text'; say in "
                f"train.columns which holds what, such as columns: {{prompt: {names[0]}, completion: {names[-1]}}}; "
                f"its columns: {', '.join(names)}"
            )
        form = (named or present or ["prompt-completion"])[0]  # type: ignore[assignment]
    layout = Layout(
        form,
        (),
        columns.text or "text",
        columns.prompt or "prompt",
        columns.completion or "completion",
        columns.messages or "messages",
    )
    if form == "text":
        needed = [layout.text]
    elif form == "messages":
        needed = [layout.messages]
    else:
        needed = [*instruction_columns(definition.instruction, layout.prompt, names, "instruction"), layout.completion]
    return Layout(form, tuple(needed), layout.text, layout.prompt, layout.completion, layout.messages)


def to_example(definition: TaskFile, layout: Layout, row: Row) -> Example | None:
    """Return the example of a row, None where its prompt or answer is empty.

    Raises:
        UserError: messages that are none, or that do not end with the assistant's.
    """
    if layout.form == "text":
        text = cell_text(row, layout.text)
        return Example("", text) if text.strip() else None
    if layout.form == "messages":
        return messages_example(definition, read_messages(row.values[layout.messages], row.title, layout.messages), row)
    completion = row.values[layout.completion]
    asked = row.values[layout.prompt] if definition.instruction is None else None
    if _is_messages(completion) or _is_messages(asked):
        before = read_messages(asked, row.title, layout.prompt)
        behind = read_messages(completion, row.title, layout.completion)
        return messages_example(definition, [*before, *behind], row)
    instruction, answer = fill(definition.instruction, layout.prompt, row), cell_text(row, layout.completion)
    if not instruction.strip() or not answer.strip():
        return None
    return Example(conversation(definition, instruction), answer)


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "role" in value[0]


def messages_example(definition: TaskFile, messages: list[Message], row: Row) -> Example | None:
    """Return the example of a conversation that ends with the assistant's turn."""
    if len(messages) < 2 or messages[-1]["role"] != ASSISTANT:
        raise UserError(
            f"the messages in {row.title} do not end with the assistant's turn; write its answer as the last one"
        )
    if definition.system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": definition.system}, *messages]
    if not all(message["content"].strip() for message in messages):
        return None
    return Example(Conversation(messages[:-1]), messages[-1]["content"])


def is_held_out(definition: TaskFile, example: Example) -> bool:
    """Return whether benchmarks keep an example: by the hash of its prompt, so equal prompts are on one side."""
    if not definition.holds_out:
        return False
    # Of a whole text the prompt is empty.
    key = hashlib.sha256(str(example.prompt or example.answer).encode()).digest()
    return int.from_bytes(key[:8]) < definition.test_share * 2**64


def read_examples(
    definition: TaskFile, layout: Layout, counts: Counts, held_out: bool = False
) -> Iterator[tuple[Row, Example]]:
    """Yield the training examples, or the held-out ones, with their rows; one row at a time is in memory.

    Args:
        definition: the task file.
        layout: see `find_layout`.
        counts: filled on the way.
        held_out: yield what benchmarks keep instead.
    """
    for row in read_rows(definition.train, layout.columns):
        counts.rows += 1
        example = to_example(definition, layout, row)
        if example is None:
            counts.empty += 1
            continue
        if layout.form != "messages":
            counts.converted += any(
                value is not None and not isinstance(value, str) and not _is_messages(value)
                for value in (row.values[name] for name in layout.columns)
            )
        # Eight bytes of a hash for each row; that two of ten million rows agree by chance has odds of 1 to 370,000.
        content = f"{example.prompt}\0{example.answer}".encode()
        counts.hashes.append(int.from_bytes(hashlib.sha256(content).digest()[:8]))
        is_test = is_held_out(definition, example)
        counts.held_out += is_test
        if not is_test:
            counts.used += 1
            counts.characters += len(example.prompt) + len(example.answer)
        if is_test == held_out:
            yield row, example


def training_identity(definition: TaskFile, layout: Layout) -> dict[str, Any]:
    """Return what of a task file decides the examples besides the rows; no path is in it."""
    fields = definition.model_dump(mode="json", include={"instruction", "system", "prompt", "loss", "max_length"})
    share = definition.test_share if definition.holds_out else None
    return fields | {"form": layout.form, "test_share": share, "version": READING_VERSION}


def example_line(example: Example) -> bytes:
    """Return an example as one line, of which hashes are made."""
    return canonical_json([str(example.prompt), example.answer]).encode() + b"\n"
