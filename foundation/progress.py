"""Progress of long loops deep inside a computation, reported without a callback in every signature between."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

Item = TypeVar("Item")

_current: ContextVar[Progress | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(progress: Progress | None) -> Iterator[None]:
    """Let `track` report to ``progress`` inside the block; None silences it."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def track(items: Iterable[Item], total: int | None = None) -> Iterator[Item]:
    """Yield the items and report after each how many are done; silent outside of `reporting`.

    Args:
        items: what is iterated over.
        total: how many there are; needed where ``items`` has no length.

    Raises:
        TypeError: neither a total nor a length.
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("track needs a total for what has no length")
        total = len(items)
    for done, item in enumerate(items):
        if done == 0 and (progress := _current.get()):
            progress(0, total)
        yield item
        if progress := _current.get():
            progress(done + 1, total)
