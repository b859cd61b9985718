"""The report as Markdown: the same sections, with the numbers behind the pictures instead of the pictures."""

from __future__ import annotations

import re

from ..tables.escape import clean, markdown_text
from ..tables.table import Table, text_columns
from ..tables.writers import markdown_grid
from .blocks import Block, Bullets, Code, Examples, Fold, Heading, Listing, Picture
from .data import Example, Report
from .document import sections


def report_markdown(report: Report) -> str:
    """Return the report as GitHub-flavoured Markdown; what folds on the page and is long is left out."""
    parts = [f"# {markdown_text(f'Report: {report.title}')}"]
    for section in sections(report):
        parts.append(f"## {markdown_text(section.title)}")
        for block in section.blocks:
            parts += _block(block)
    return "\n\n".join(parts) + "\n"


def _block(block: Block) -> list[str]:
    if isinstance(block, str):
        return [markdown_text(block)]
    if isinstance(block, Heading):
        return [f"### {markdown_text(block.text)}"]
    if isinstance(block, Bullets):
        return ["\n".join(f"- {markdown_text(text)}" for text in block.items)]
    if isinstance(block, Listing):
        return [markdown_grid(Table("", text_columns("", "value"), block.facts))]
    if isinstance(block, Code):
        return [fenced(block.text)]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        return [markdown_text(f"Picture on the page: {block.caption}"), *(_table(block.data) if block.data else [])]
    if isinstance(block, Examples):
        return [text for example in block.examples for text in _example(example)]
    return [] if block.long else _fold(block)


def _fold(block: Fold) -> list[str]:
    return [f"**{markdown_text(block.summary)}**", *(text for inner in block.blocks for text in _block(inner))]


def _table(table: Table) -> list[str]:
    return [f"**{markdown_text(table.title)}**", markdown_grid(table), *map(markdown_text, table.notes)]


def _example(example: Example) -> list[str]:
    source = f"{example.label} at {example.ratio:g}×, seed {example.seed}, problem {example.problem}"
    parts = [f"#### {markdown_text(f'{example.kind}: {source}')}"]
    if example.prompt:
        parts += ["Prompt:", fenced(example.prompt)]
    parts += ["Completion:", fenced(example.completion or "(empty)")]
    facts = [f"read as {example.answer or 'nothing'}", f"verdict {example.verdict}"]
    if example.gold:
        facts.insert(0, f"right answer {example.gold}")
    return [*parts, markdown_text("; ".join(facts).replace("\n", " "))]


def fenced(text: str) -> str:
    """Return text as a code block that it cannot end: its fence is longer than any row of backticks in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    lines = re.split(r"\r\n|\r|\n", text)
    return "\n".join([f"{fence}text", *(clean(line.expandtabs(4)) for line in lines), fence])
