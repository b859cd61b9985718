"""From a row to a conversation, and from a conversation to the prompt that a model reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from ....foundation.errors import UserError, did_you_mean
from ..chat import ASSISTANT, Conversation, Message
from ..prompts import finetuning_prompt
from .rows import Row, cell_text
from .schema import PLACEHOLDER, TaskFile

ROLES = ("system", "user", ASSISTANT)


def instruction_columns(template: str | None, prompt_column: str, names: Iterable[str], field: str) -> list[str]:
    """Return the columns that an instruction reads.

    Args:
        template: the instruction with ``{column}``, or None for the prompt column alone.
        prompt_column: its name.
        names: the columns that are there.
        field: of the task file, for messages.

    Raises:
        UserError: a column that is not there, or a template that reads none.
    """
    if template is None:
        return [prompt_column]
    known, columns = list(names), PLACEHOLDER.findall(template)
    if not columns:
        raise UserError(f"'{field}' reads no column; write {{column}} where a column's text goes: {', '.join(known)}")
    for column in columns:
        if column not in known:
            hint = did_you_mean(column, known) or ";"
            raise UserError(
                f"'{field}' reads the column '{column}', which is not there{hint} columns: {', '.join(known)}"
            )
    return list(dict.fromkeys(columns))


def fill(template: str | None, prompt_column: str, row: Row) -> str:
    """Return a row's instruction; what the columns hold is not read as a template again."""
    if template is None:
        return cell_text(row, prompt_column)
    return PLACEHOLDER.sub(lambda match: cell_text(row, match[1]), template)


def conversation(definition: TaskFile, instruction: str) -> Conversation:
    """Return the conversation of one instruction, behind the system message where there is one."""
    system = [{"role": "system", "content": definition.system}] if definition.system else []
    return Conversation([*system, {"role": "user", "content": instruction}])


def read_messages(value: Any, title: str, column: str) -> list[Message]:
    """Return a cell's messages.

    Raises:
        UserError: no list of role and content, an unknown role, or content that is no text.
    """
    problem = f"column '{column}' in {title}"
    if isinstance(value, str) and value.lstrip().startswith("["):  # of a CSV file
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if not isinstance(value, list) or not value:
        raise UserError(f'{problem} is no list of messages; write [{{"role": "user", "content": "…"}}, …]')
    messages: list[Message] = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise UserError(f"message {number} of {problem} has no role and content; write both")
        if message["role"] not in ROLES:
            raise UserError(
                f"message {number} of {problem} has the role '{message['role']}'; allowed: {', '.join(ROLES)}"
            )
        if not isinstance(message["content"], str):
            raise UserError(f"message {number} of {problem} has content that is no text; only text is read")
        try:
            message["content"].encode()
        except UnicodeEncodeError:
            raise UserError(f"message {number} of {problem} holds half a character (a lone surrogate)") from None
        messages.append({"role": message["role"], "content": message["content"]})
    return messages


def asked(definition: TaskFile, prompt: str, chat: bool) -> str:
    """Return the prompt that a model reads.

    Args:
        definition: the task file, which says how.
        prompt: a conversation, or an empty text, which stays.
        chat: whether the tokenizer has a chat template that may be used.

    Raises:
        UserError: a conversation of several turns, which only a chat template can write.
    """
    if not isinstance(prompt, Conversation) or uses_chat(definition, chat):
        return prompt
    roles = [message["role"] for message in prompt.messages]
    if roles not in (["user"], ["system", "user"]):
        raise UserError(
            f"the task '{definition.name}' has conversations of several turns, which only a chat template can write; "
            "use a chat model and 'prompt: auto' or 'prompt: chat'"
        )
    text = "\n\n".join(message["content"] for message in prompt.messages)
    style = "alpaca" if definition.prompt == "auto" else definition.prompt
    if "{instruction}" in style:
        return style.replace("{instruction}", text)
    return str(finetuning_prompt(text, style))


def uses_chat(definition: TaskFile, chat: bool) -> bool:
    """Return whether prompts are rendered with the tokenizer's chat template."""
    return definition.prompt == "chat" or (definition.prompt == "auto" and chat)


def style_name(definition: TaskFile, chat: bool) -> str:
    """Return how the prompts are called in a variant."""
    if uses_chat(definition, chat):
        return "chat"
    return {"auto": "alpaca", "alpaca": "alpaca", "question": "question", "plain": "plain"}.get(
        definition.prompt, "own"
    )
