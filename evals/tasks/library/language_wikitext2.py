"""Perplexity of encyclopedia articles (WikiText-2)."""

from __future__ import annotations

from ..base import Task
from ..texts import wikitext2

TASK = Task(
    "language-wikitext2",
    "perplexity of encyclopedia articles (WikiText-2)",
    "language",
    ("wikitext2",),
    1024,
    {"wikitext2": wikitext2},
    pretrained_row=True,
    joined=True,
)
