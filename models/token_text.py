"""Tokens as visible text: spaces, control characters and lone bytes can be seen, and a terminal obeys none of them."""

from __future__ import annotations

import json
from typing import Any

SPACE = "\N{OPEN BOX}"
"""Is shown for a space."""


def token_texts(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return each token as visible text, without context.

    A space is ``␣``, a backslash is doubled, other characters that do not print are escaped as in Python (``\\n``,
    ``\\x1b``, ``\\u200b``), bytes that are no UTF-8 of their own are ``<0xE2>``, and so are all
    byte tokens of sentencepiece, which has a token for the byte 0x41 beside the one for the letter A.

    Args:
        tokenizer: byte-level BPE or sentencepiece, fast.
        ids: below the length of the tokenizer.
    """
    special, level = set(tokenizer.all_special_ids), _is_byte_level(tokenizer)
    return [_text(token, level and i not in special) for i, token in zip(ids, _tokens(tokenizer, ids), strict=True)]


def _tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    return [
        f"<id {i}>" if token is None else token
        for i, token in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ]


def _is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return False
    decoder = json.loads(backend.to_str()).get("decoder") or {}
    return "ByteLevel" in [decoder.get("type"), *(part.get("type") for part in decoder.get("decoders", []))]


def _text(token: str, byte_level: bool) -> str:
    if byte_level and all(c in _BYTES for c in token):
        # surrogateescape keeps bytes that are no text apart from those that are.
        return visible(bytes(_BYTES[c] for c in token).decode("utf-8", "surrogateescape"))
    return visible(token if byte_level else token.replace("\u2581", " "))


def visible(text: str) -> str:
    """Return text in which every character shows."""
    return "".join(map(_character, text))


def _character(c: str) -> str:
    if "\udc80" <= c <= "\udcff":
        return f"<0x{ord(c) - 0xDC00:02X}>"
    if c == " ":
        return SPACE
    if c == "\\" or not c.isprintable():
        return c.encode("unicode_escape").decode()
    return c


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's alphabet, which writes each byte as one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(hidden)}


_BYTES = _byte_alphabet()
