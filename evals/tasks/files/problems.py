"""The problems of a task file's benchmark: rows of a file of their own, or the held-out part of the training data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ....foundation.errors import UserError
from ....foundation.files import digest
from ...data.datasets import Rows
from ...kinds.code import tested_names
from .prompting import conversation, fill, instruction_columns, read_messages
from .rows import Row, cell_text, columns_of, is_file, read_rows, shown
from .schema import AnyBenchmark, Choice, Code, Json, Perplexity, TaskFile
from .training import Counts, Layout, find_layout, messages_example, read_examples


@dataclass
class ProblemCard:
    """What was in the data of a benchmark: rows, those without a prompt or an answer, equal problems, and problems."""

    rows: int = 0
    empty: int = 0
    duplicates: int = 0
    problems: int = 0
    sha256: str = ""


def problems(definition: TaskFile, part: AnyBenchmark) -> Rows:
    """Return a benchmark's problems, read once a process and again where the file has changed.

    A row has ``id``, ``messages`` (what is asked), ``answers`` (references; none for code), or ``text``, and for some
    kinds ``choices``, ``gold`` or ``tests``; the source is the data card as JSON.

    Raises:
        UserError: data that cannot be read, a row that lacks something, or no problem at all.
    """
    data = part.data or definition.train.data
    state = Path(data).stat() if is_file(data) and Path(data).exists() else None
    stamp = (state.st_mtime_ns, state.st_size) if state else None
    return _problems(definition.model_dump_json(by_alias=True), part.name, stamp)


# The stamp is nothing but a part of the key: a file that has changed is read again.
@lru_cache(maxsize=16)
def _problems(definition_json: str, name: str, stamp: Any) -> Rows:
    definition = TaskFile.model_validate_json(definition_json)
    part = next(part for part in definition.benchmarks if part.name == name)
    rows: list[dict[str, Any]] = []
    card = ProblemCard()
    for row in _rows(definition, part, card):
        if row is None:
            card.empty += 1
        else:
            rows.append(row)
    if not rows and part.data is None and not card.rows:
        raise UserError(
            f"the benchmark '{name}' has no problems: no row of the training data was held out for it; give it data of "
            f"its own (data: FILE), add rows, or raise test_share ({definition.test_share:g})"
        )
    if not rows:
        remedy = "raise test_share" if part.data is None else "name other columns, or another file"
        raise UserError(
            f"the benchmark '{name}' has no problems: {card.rows:,} rows, {card.empty:,} of them without a "
            f"prompt or an answer; {remedy}"
        )
    # Without ids, so that a problem is the same wherever it is in the file.
    contents = [digest({key: value for key, value in row.items() if key != "id"}) for row in rows]
    card.duplicates, card.problems = len(contents) - len(set(contents)), len(rows)
    card.sha256 = digest(contents)
    return Rows(rows, card.sha256, json.dumps(asdict(card)))


def _rows(definition: TaskFile, part: AnyBenchmark, card: ProblemCard) -> Iterator[dict[str, Any] | None]:
    if part.data is None:
        yield from _held_out(definition, part, card)
        return
    source = part.source("test")
    assert source is not None
    names = columns_of(source)
    layout, answers = _layout(definition, part, names, shown(source))
    extra = [column for column in (part.columns.choices, part.columns.tests) if column]
    needed = list(dict.fromkeys([*layout.columns, *answers, *extra]))
    template = part.instruction or definition.instruction
    for row in read_rows(source, needed):
        card.rows += 1
        if layout.form == "text":
            text = cell_text(row, layout.text)
            yield {"id": str(row.number), "text": text} if text.strip() else None
        elif layout.form == "messages":
            messages = read_messages(row.values[layout.messages], row.title, layout.messages)
            example = messages_example(definition, messages, row)
            asked, answer = (example.prompt, example.answer) if example else ("", "")
            yield _problem(part, row, asked, answer) if example else None
        else:
            instruction = fill(template, layout.prompt, row)
            reference = row.values[answers[0]] if answers else None
            yield _problem(part, row, conversation(definition, instruction), reference) if instruction.strip() else None


def _held_out(definition: TaskFile, part: AnyBenchmark, card: ProblemCard) -> Iterator[dict[str, Any] | None]:
    layout, counts = find_layout(definition), Counts()
    extra = [column for column in (part.columns.choices, part.columns.tests) if column]
    if part.instruction or any((part.columns.prompt, part.columns.messages, part.columns.text)):
        raise UserError(
            f"the benchmark '{part.name}' has no data of its own, so that its prompts are those of the training data; "
            "leave out its instruction and columns, or name its data"
        )
    if isinstance(part, Perplexity) != (layout.form == "text"):
        needed = "a text column" if isinstance(part, Perplexity) else "prompts and answers"
        raise UserError(
            f"the benchmark '{part.name}' of kind {part.kind} needs {needed}, which the training data have not; name "
            "data for it"
        )
    needed_columns = tuple(dict.fromkeys([*layout.columns, *extra, *filter(None, [part.columns.answer])]))
    wider = Layout(layout.form, needed_columns, layout.text, layout.prompt, layout.completion, layout.messages)
    for row, example in read_examples(definition, wider, counts, held_out=True):
        if layout.form == "text":
            yield {"id": str(row.number), "text": example.answer}
            continue
        answer = row.values[part.columns.answer] if part.columns.answer else example.answer
        yield _problem(part, row, example.prompt, answer)
    card.rows = counts.held_out


def _layout(
    definition: TaskFile, part: AnyBenchmark, names: Sequence[str], source: str
) -> tuple[Layout, tuple[str, ...]]:
    """Return which columns ask, and which holds the reference answer."""
    columns, train = part.columns, definition.train.columns
    prompt = columns.prompt or train.prompt or "prompt"
    if isinstance(part, Perplexity):
        text = columns.text or train.text or "text"
        return Layout("text", (text,), text=text), ()
    template = part.instruction or definition.instruction
    messages = columns.messages or train.messages or "messages"
    asks_messages = columns.messages or (messages in names and prompt not in names and template is None)
    if asks_messages:
        return Layout("messages", (messages,), messages=messages), ()
    field = f"benchmarks.{part.name}.instruction" if part.instruction else "instruction"
    asking = instruction_columns(template, prompt, names, field)
    if isinstance(part, Code) or (isinstance(part, Json) and columns.answer is None):
        return Layout("prompt-completion", tuple(asking), prompt=prompt), ()
    answer = columns.answer or train.completion or ("answer" if "answer" in names else "completion")
    return Layout("prompt-completion", (*asking, answer), prompt=prompt), (answer,)


def _problem(part: AnyBenchmark, row: Row, asked: Any, answer: Any) -> dict[str, Any] | None:
    """Return a problem, None where it has no answer."""
    problem: dict[str, Any] = {"id": str(row.number), "messages": [dict(message) for message in asked.messages]}
    if isinstance(part, Code):
        return problem | {"tests": _tests(row, part.columns.tests or "tests")}
    if isinstance(part, Choice):
        choices = list(part.choices or _choices(row, part.columns.choices or "choices"))
        if answer is None or not str(answer).strip():
            return None
        return problem | {"choices": choices, "gold": _gold(row, choices, answer)}
    if isinstance(part, Json) and answer is None:
        return problem | {"answers": []}
    listed = answer if isinstance(answer, list) and not isinstance(part, Json) else [answer]
    answers = [cell_text(Row(row.title, row.number, {"answer": reference}), "answer") for reference in listed]
    return problem | {"answers": answers} if any(text.strip() for text in answers) else None


def _tests(row: Row, column: str) -> str:
    _require_column(row, column, "asserts")
    value = row.values[column]
    tests = "\n".join(map(str, value)) if isinstance(value, list) else cell_text(row, column)
    try:
        tested_names(tests)
    except UserError as error:
        raise UserError(f"column '{column}' in {row.title}: {error}") from error
    return tests


def _choices(row: Row, column: str) -> list[str]:
    _require_column(row, column, "choices")
    value = row.values[column]
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise UserError(
                    f'column \'{column}\' in {row.title} is no JSON list ({error}); write ["a", "b"] or a|b'
                ) from error
        else:
            value = [part.strip() for part in value.split("|")]
    choices = [str(choice) for choice in value] if isinstance(value, list) else []
    if len(choices) < 2 or not all(choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise UserError(
            f"column '{column}' in {row.title} must hold two or more different choices; write a list, or a|b"
        )
    return choices


def _require_column(row: Row, column: str, kind: str) -> None:
    if column not in row.values:
        raise UserError(
            f"{row.title} has no column '{column}' with {kind}; say in the benchmark's columns which it is: "
            f"{', '.join(map(str, row.values))}"
        )


def _gold(row: Row, choices: Sequence[str], answer: Any) -> int:
    """Return the position of the right choice: by its text, its number from 0, or its letter."""
    text = str(answer).strip()
    stripped = [choice.strip() for choice in choices]
    # The text first, because a choice may itself be a number or a letter.
    if text in stripped:
        return stripped.index(text)
    if text.isdigit() and int(text) < len(choices):
        return int(text)
    if len(text) == 1 and 0 <= (index := ord(text.upper()) - ord("A")) < len(choices):
        return index
    raise UserError(
        f"the answer '{text[:60]}' in {row.title} is none of its choices ({', '.join(stripped)[:200]}); write a "
        "choice, its number from 0 or its letter"
    )


def card_of(rows: Rows) -> ProblemCard:
    """Return the data card of a benchmark's problems."""
    return ProblemCard(**json.loads(rows.source))
