"""Problems of a benchmark that training examples show already: the same prompt, or nearly the same words."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from ...grading.text import words
from ..chat import Conversation

NEAR = 0.8
"""Share of a problem's word groups that one training example has, from which on the two are nearly the same."""
GROUP = 5
"""Words of a group; of a shorter text, all its words."""


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

    An example with `NEAR` of a problem's n groups lacks at most n - `NEAR` n of them, so it has one of any that many
    and one more. Of each problem only so many are looked up, its rarest ones: an example is compared with few
    problems, even where all have a template's words in common.

    Args:
        problems: of the benchmark.
    """

    def __init__(self, problems: Sequence[Mapping[str, Any]]) -> None:
        self._ids = [str(row["id"]) for row in problems]
        self._exact: dict[bytes, list[int]] = defaultdict(list)
        self._rarest: dict[int, list[int]] = defaultdict(list)
        self._groups: list[set[int]] = []
        for index, row in enumerate(problems):
            text = problem_text(row)
            self._exact[_hash(" ".join(words(text)))].append(index)
            self._groups.append(_groups(text))
        problems_with = Counter(chain.from_iterable(self._groups))
        for index, groups in enumerate(self._groups):
            looked_up = len(groups) - math.ceil(NEAR * len(groups)) + 1
            for group in heapq.nsmallest(looked_up, groups, key=problems_with.__getitem__):
                self._rarest[group].append(index)
        self._equal: dict[int, str] = {}
        self._near: dict[int, str] = {}

    def see(self, text: str, title: str) -> None:
        """Compare one training example with all problems.

        Args:
            text: its prompt.
            title: names the example, for people.
        """
        for index in self._exact.get(_hash(" ".join(words(text))), ()):
            self._equal.setdefault(index, title)
        groups = _groups(text)
        for index in {index for group in groups & self._rarest.keys() for index in self._rarest[group]}:
            if index not in self._near and len(groups & self._groups[index]) >= NEAR * len(self._groups[index]):
                self._near[index] = title

    def result(self) -> Overlap:
        """Return what was found."""
        near = {index: title for index, title in self._near.items() if index not in self._equal}
        index, title = next(iter({**self._equal, **near}.items()), (0, ""))
        example = f"problem {self._ids[index]} is that of {title}" if title else ""
        return Overlap(len(self._ids), len(self._equal), len(near), example)


def _groups(text: str) -> set[int]:
    tokens = words(text)
    size = min(GROUP, len(tokens))
    return set(map(hash, zip(*(tokens[i:] for i in range(size)), strict=False)))


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
