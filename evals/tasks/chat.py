"""Conversations: prompts that the tokenizer's own chat template renders, and what a model ends a turn with.

A template decides about BOS itself, so that rendered text is encoded as it is. Where a template has no
``{% generation %}`` markers, which is nearly always, what the assistant says is the difference between the rendering
with and without its turn. A turn that the template writes in another way once the conversation goes on (Qwen3 leaves
the reasoning out of earlier ones) is read and not learnt; where that is the last one the template is refused, because
the mask would be a guess.

Templates may read more than messages: the day, or whether the model reasons first. Both are fixed here, so that the
same data are the same text tomorrow, and an answer comes without a reasoning that the data do not have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ...foundation.errors import UserError
from ..continuation import encode_continuation

Message = Mapping[str, str]
"""``role`` (``system``, ``user``, ``assistant``) and ``content``."""

ASSISTANT = "assistant"

DAY = datetime(2024, 7, 26, tzinfo=UTC)
"""The day that templates write as today: the one that Llama 3.1's own falls back on."""

_FIXED: Mapping[str, Any] = {
    "enable_thinking": False,  # Qwen3, SmolLM3, GLM 4.5
    "date_string": DAY.strftime("%d %b %Y"),  # Llama 3.1 and later
    "strftime_now": DAY.strftime,  # transformers' own function, of which a variable of the template takes precedence
}
"""Variables of the template."""


class Instructed(str):
    """A finetuning prompt as text, which remembers the instruction that it was made from."""

    instruction: str

    def __new__(cls, text: str, instruction: str) -> Instructed:
        """Make the text; nothing but the attribute sets it apart from another."""
        instance = super().__new__(cls, text)
        instance.instruction = instruction
        return instance

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle both parts."""
        return type(self), (str(self), self.instruction)


class Conversation(str):
    """Messages that wait for the assistant's turn; as text they are JSON, so that hashes and people can read them."""

    messages: tuple[Message, ...]

    def __new__(cls, messages: Iterable[Message]) -> Conversation:
        """Make the text of the messages."""
        turns = tuple({"role": str(m["role"]), "content": str(m["content"])} for m in messages)
        instance = super().__new__(cls, json.dumps(turns, ensure_ascii=False))
        instance.messages = turns
        return instance

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the messages."""
        return type(self), (self.messages,)


def as_conversation(prompt: str) -> str:
    """Return the conversation of one user turn for a prompt that has an instruction; others as they are."""
    if isinstance(prompt, Instructed):
        return Conversation([{"role": "user", "content": prompt.instruction}])
    return prompt


def is_chat_variant(variant: str) -> bool:
    """Return whether the prompts of a record's variant, such as ``gsm8k-0shot-chat``, are conversations."""
    return variant.endswith("-chat")


def has_chat_template(tokenizer: Any) -> bool:
    """Return whether a tokenizer brings a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def chat_rules(tokenizer: Any) -> int:
    """Return the version of the rules by which a tokenizer's template is rendered: 2 where fixed variables change it.

    Part of the key of stages that read conversations, where it is not 1.
    """
    if not has_chat_template(tokenizer):
        return 1
    template = str(tokenizer.get_chat_template())
    return 2 if "enable_thinking" in template or "strftime_now" in template else 1


def render(tokenizer: Any, messages: Sequence[Message], asks: bool) -> str:
    """Return messages as the tokenizer's chat template writes them.

    Args:
        tokenizer: with a chat template.
        messages: the turns so far.
        asks: end with the beginning of an assistant's turn.

    Raises:
        UserError: no template, or one that refuses these messages.
    """
    if not has_chat_template(tokenizer):
        raise UserError(
            "this model's tokenizer has no chat template; use a chat model, or write 'prompt: alpaca' (or question, "
            "plain, a text with {instruction}) in the task file"
        )
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks, **_FIXED))
    except Exception as error:  # Jinja's, or what the template raises by itself
        roles = [message["role"] for message in messages]
        remedy = "bring the turns into an order that it allows, such as user, assistant"
        if "system" in roles:
            remedy = (
                "some templates take no system message: leave 'system' out of the task file and system turns out of "
                "its data, and write their text into the instruction, or " + remedy
            )
        raise UserError(
            f"the chat template of this tokenizer refuses messages of the roles {', '.join(roles)} ({error}); {remedy}"
        ) from error


class Turns(NamedTuple):
    """A rendered conversation in pieces, in order: texts, and whether the assistant says them."""

    texts: list[str]
    learnt: list[bool]


def turns(tokenizer: Any, messages: Sequence[Message]) -> Turns:
    """Cut a conversation into what the assistant says and what it reads; it ends with the assistant's last turn.

    Raises:
        UserError: no assistant's turn, or a template that does not write the last one behind what it asks for it with.
    """
    positions = [index for index, message in enumerate(messages) if message["role"] == ASSISTANT]
    if not positions:
        raise UserError("the messages have no turn of the assistant's, so there is nothing to learn from them")
    result, done = Turns([], []), ""
    whole = render(tokenizer, messages[: positions[-1] + 1], asks=False)
    for index in positions:
        last = index == positions[-1]
        before = render(tokenizer, messages[:index], asks=True)
        after = whole if last else render(tokenizer, messages[: index + 1], asks=False)
        grows = before.startswith(done) and after.startswith(before) and len(after) > len(before)
        if grows and whole.startswith(after):
            result.texts.extend((before[len(done) :], after[len(before) :]))
            result.learnt.extend((False, True))
            done = after
        elif last:
            raise UserError(
                "this tokenizer's chat template does not write the assistant's last turn behind the text that it asks "
                "for it with, so that what the assistant says cannot be separated; leave reasoning such as <think> "
                "blocks out of the answers, or use another prompt than the chat template's"
            )
    return result


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of tokens that are no text: those with a role, and added ones that are marked as special."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*map(int, tokenizer.all_special_ids), *(int(i) for i, token in added.items() if token.special)}


def end_of_turn_ids(tokenizer: Any) -> tuple[int, ...]:
    """Return the id that the chat template ends an assistant's turn with, or none where it is plain text."""
    pieces = turns(tokenizer, [{"role": "user", "content": "a"}, {"role": ASSISTANT, "content": "b"}])
    special = special_ids(tokenizer)
    return tuple(token for token in encode_continuation(tokenizer, pieces.texts[-1]) if token in special)[:1]


def encode_turns(tokenizer: Any, messages: Sequence[Message], ignored: int) -> tuple[list[int], list[int]]:
    """Return ids and labels of a conversation; learnt is what the assistant says, and the token that ends its turn.

    Pieces are encoded apart and joined as ids, so that generation starts from the very ids that training saw. What the
    template writes behind the end of the last turn is left out.

    Args:
        tokenizer: with a chat template.
        messages: ending with the assistant's.
        ignored: label of what is not learnt.
    """
    pieces, special = turns(tokenizer, messages), special_ids(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    behind = 0  # ids behind the end of a turn, so far
    for text, learnt in zip(*pieces, strict=True):
        piece = _encode(tokenizer, text) if not learnt else encode_continuation(tokenizer, text)
        end = len(piece)
        if learnt:
            ends = [index + 1 for index, token in enumerate(piece) if token in special]
            end = ends[-1] if ends else end
            if not ends and tokenizer.eos_token_id is not None:
                piece, end = [*piece, int(tokenizer.eos_token_id)], end + 1
        ids += piece
        labels += [*piece[:end], *[ignored] * (len(piece) - end)] if learnt else [ignored] * len(piece)
        behind = len(piece) - end
    return ids[: len(ids) - behind], labels[: len(labels) - behind]


def encode_conversation(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the ids of a conversation up to the beginning of the assistant's turn."""
    return _encode(tokenizer, render(tokenizer, conversation.messages, asks=True))


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
