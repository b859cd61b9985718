"""Text that continues other text, as token ids and back.

Tokenizers made with sentencepiece put a space before the first word of a text, and their decoders strip one again
(Llama 2, stories260K). Both are meant for a whole text. A completion is no whole text: decoded alone it loses the space
that it begins with, and an answer encoded alone gets a space that is not its own. So both are done behind other text:
ids are decoded behind the last ids of the prompt, whose own text is then taken away, as vLLM's detokenizer does; an
answer is encoded behind a newline, whose ids are then left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

DECODING_VERSION = 2
"""Raised whenever the same ids become another text; part of the identity of every evaluation that generates. Version 1
decoded completions alone."""

_CONTEXT = 8
"""So many ids of a prompt are decoded before a completion; more where a character would be cut."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of ids as the tokenizer decodes them alone, special tokens left out, nothing tidied up."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def decode_continuation(tokenizer: Any, prompt: Sequence[int], ids: Sequence[int]) -> str:
    """Return the text that ids add to a prompt.

    Where the prompt ends within a character that the first of the ids complete, the character is theirs.

    Args:
        tokenizer: fast or slow, of any family.
        prompt: the ids before; they may be special tokens alone, or none.
        ids: what continues them.
    """
    before = _last_ids(tokenizer, prompt)
    while before:
        old, both = decode(tokenizer, before), decode(tokenizer, [*before, *ids])
        if both.startswith(old):
            return both[len(old) :]
        if old.endswith(_BROKEN):
            return both[_common(old, both) :]
        # Bytes that are no character spoil all the bytes before them in decoders with byte fallback, those of the
        # prompt too: leave out the prompt's last ids until none of it are bytes.
        before = before[:-1]
    return decode(tokenizer, ids)


def _last_ids(tokenizer: Any, prompt: Sequence[int]) -> list[int]:
    """Return the fewest of a prompt's last ids that have a text and do not begin within a character."""
    for count in (*range(_CONTEXT, 2 * _CONTEXT), len(prompt)):
        ids = list(prompt[-count:])
        text = decode(tokenizer, ids)
        if text and not text.startswith(_BROKEN):
            break
    return ids


def _common(left: str, right: str) -> int:
    return next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


def encode_continuation(tokenizer: Any, text: str) -> list[int]:
    """Return the ids, without special tokens, that read as exactly this text behind other text.

    They are those of the text alone, except for tokenizers that would put a space before it.
    """
    if text and _adds_space(tokenizer):
        for before in ("\n", ":"):  # the second where a tokenizer merges newlines and the text begins with one
            both, head = _encode(tokenizer, before + text), _encode(tokenizer, before)
            if both[: len(head)] == head:
                return both[len(head) :]
    return _encode(tokenizer, text)


@lru_cache(maxsize=8)
def _adds_space(tokenizer: Any) -> bool:
    return decode_continuation(tokenizer, _encode(tokenizer, "\n"), _encode(tokenizer, "a")) == " a"


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))
