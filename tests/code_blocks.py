"""The fenced code blocks of a Markdown page, so that tests execute what readers copy."""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: behind the fence, such as ``python``.
        text: its text.
        heading: the nearest one above it.
        file: the last file in backticks above it in the same section, such as ``methods/library/half_svd.py``; empty
            if there is none.
    """

    language: str
    text: str
    heading: str
    file: str


def code_blocks(page: str, heading: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page, all or those below one heading.

    Args:
        page: path inside the repository.
        heading: the text of a heading.
    """
    tokens = MarkdownIt().parse((ROOT / page).read_text(encoding="utf-8"))
    blocks, section, file = [], "", ""
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "inline" and before is not None and before.type == "heading_open":
            section, file = token.content, ""
        elif token.type == "inline":
            file = next(iter(re.findall(r"`([\w./-]+\.(?:py|csv))`", token.content)[::-1]), file)
        elif token.type == "fence":
            blocks.append(Block(token.info.strip(), token.content, section, file))
    return [block for block in blocks if heading in (None, block.heading)]
