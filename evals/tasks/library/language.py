"""Perplexity of short stories (TinyStories)."""

from __future__ import annotations

from ..base import Task
from ..texts import tinystories

TASK = Task(
    "language",
    "perplexity of short stories (TinyStories)",
    "language",
    ("tinystories",),
    512,
    {"tinystories": tinystories},
    pretrained_row=True,
)
