"""What a report is made of, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..tables.table import Table
from .data import Example, Facts


@dataclass(frozen=True)
class Picture:
    """A figure, drawn when a page needs it.

    Attributes:
        name: unique on the page.
        alt: what is to be seen, for those who do not see it.
        caption: what it shows and how to read it.
        draw: gives SVG, or matplotlib's figure; called inside `curves.style`.
        data: the numbers behind it; None where a table beside it has them.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[], Any]
    data: Table | None = None


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Listing:
    """Names with values."""

    facts: Facts


@dataclass(frozen=True)
class Code:
    """Text with its line breaks."""

    text: str


@dataclass(frozen=True)
class Examples:
    """Completions that failed."""

    examples: Sequence[Example]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Fold:
    """Blocks that open when asked for.

    Attributes:
        long: whether they are left out of Markdown, which cannot fold.
    """

    summary: str
    blocks: Sequence[Block]
    long: bool = False


Block: TypeAlias = str | Bullets | Listing | Code | Table | Picture | Examples | Heading | Fold
"""A text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; ``id`` is what links lead to."""

    id: str
    title: str
    blocks: Sequence[Block]
