"""Perplexity of web pages (C4)."""

from __future__ import annotations

from ..base import Task
from ..texts import c4

TASK = Task(
    "language-c4",
    "perplexity of web pages (C4)",
    "language",
    ("c4",),
    1024,
    {"c4": c4},
    pretrained_row=True,
    joined=True,
)
