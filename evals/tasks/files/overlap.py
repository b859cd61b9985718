"""Problems of a benchmark that training examples show already: the same prompt, or nearly the same words."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...grading.text import normalise, words
from ..chat import Conversation

NEAR = 0.8
"""Share of a problem's word groups that one training example has, from which on the two are nearly the same."""
GROUP = 5
"""Words of a group; of a shorter text, all its words."""
_SPREAD = 1000
"""A group that so many problems have tells none of them apart, and is left out."""


@dataclass(frozen=True)
class Overlap:
    """Problems whose prompt is among the training prompts.

    Attributes:
        problems: in all.
        exact: with equal words, case and punctuation apart.
        near: others with `NEAR` of their word groups in one example.
        example: where one of them is in the training data and the benchmark; empty for none.
    """

    problems: int
    exact: int
    near: int
    example: str = ""


def prompt_text(prompt: str) -> str:
    """Return what is asked, without roles."""
    if isinstance(prompt, Conversation):
        return "\n".join(message["content"] for message in prompt.messages if message["role"] != "system")
    return str(prompt)


def problem_text(row: Mapping[str, Any]) -> str:
    """Return what a problem asks, or its text."""
    return row["text"] if "text" in row else prompt_text(Conversation(row["messages"]))


class OverlapSearch:
    """Looks for the problems of one benchmark while training examples pass by.

    Args:
        problems: of the benchmark.
    """

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self._ids = [str(row["id"]) for row in problems]
        self._exact: dict[bytes, list[int]] = defaultdict(list)
        self._groups: dict[int, list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        for index, row in enumerate(problems):
            text = problem_text(row)
            self._exact[_hash(normalise(text))].append(index)
            groups = _groups(text)
            self._sizes.append(len(groups))
            for group in groups:
                self._groups[group].append(index)
        self._equal: dict[int, str] = {}
        self._near: dict[int, str] = {}

    def see(self, text: str, title: str) -> None:
        """Compare one training example with all problems.

        Args:
            text: its prompt.
            title: names the example, for people.
        """
        for index in self._exact.get(_hash(normalise(text)), ()):
            self._equal.setdefault(index, title)
        shared: dict[int, int] = defaultdict(int)
        for group in _groups(text):
            owners = self._groups.get(group, ())
            if len(owners) <= _SPREAD:
                for index in owners:
                    shared[index] += 1
        for index, count in shared.items():
            if count >= NEAR * self._sizes[index]:
                self._near.setdefault(index, title)

    def result(self) -> Overlap:
        """Return what was found."""
        near = {index: title for index, title in self._near.items() if index not in self._equal}
        index, title = next(iter({**self._equal, **near}.items()), (0, ""))
        example = f"problem {self._ids[index]} is that of {title}" if title else ""
        return Overlap(len(self._ids), len(self._equal), len(near), example)


def _groups(text: str) -> set[int]:
    tokens = words(text)
    size = min(GROUP, len(tokens))
    spans: Iterable[Sequence[str]] = (tokens[i : i + size] for i in range(len(tokens) - size + 1)) if size else ()
    return {int.from_bytes(_hash("\0".join(span))[:8]) for span in spans}


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
