"""What a reader of the results should know of how a model was loaded, kept on the model until it is recorded."""

from __future__ import annotations

from typing import Any

_ATTRIBUTE = "lowrank_notes"


def add_note(model: Any, sentence: str) -> None:
    """Keep a sentence; an empty one is ignored."""
    if sentence:
        model.__dict__.setdefault(_ATTRIBUTE, []).append(sentence)


def notes_of(model: Any) -> list[str]:
    """Return the sentences kept on a model, in order."""
    return list(model.__dict__.get(_ATTRIBUTE, []))
