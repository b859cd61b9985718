"""Progress of long loops deep inside a computation, reported without a callback in every signature between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

Report = Callable[[int, int, str], None]
"""Called with (items done, items in all, what the items are in the plural; may be empty)."""

Item = TypeVar("Item")

_current: ContextVar[Report | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(report: Report | None) -> Iterator[None]:
    """Let `track` and `counting` report to ``report`` inside the block; None silences them."""
    token = _current.set(report)
    try:
        yield
    finally:
        _current.reset(token)


def in_units(report: Report | None, unit: str) -> Progress | None:
    """Return what counts items of one kind for a report."""
    return None if report is None else lambda done, total: report(done, total, unit)


def counting(unit: str) -> Progress | None:
    """Return what counts items of one kind for whoever is `reporting`; None where nobody is."""
    return in_units(_current.get(), unit)


def throttled(report: Report, seconds: float = 0.2) -> Report:
    """Return a report that passes on the first and the last of each count, and otherwise one in so many seconds."""
    sent, kind = 0.0, (-1, "")

    def passed_on(done: int, total: int, unit: str = "") -> None:
        nonlocal sent, kind
        now = time.monotonic()
        if done >= total or kind != (total, unit) or now - sent >= seconds:
            sent, kind = now, (total, unit)
            report(done, total, unit)

    return passed_on


def track(items: Iterable[Item], total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield the items and report after each how many are done; silent outside of `reporting`.

    Args:
        items: what is iterated over.
        total: how many there are; needed where ``items`` has no length.
        unit: what they are, in the plural, such as ``matrices``.

    Raises:
        TypeError: neither a total nor a length.
    """
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("track needs a total for what has no length")
        total = len(items)
    for done, item in enumerate(items):
        if done == 0 and (report := _current.get()):
            report(0, total, unit)
        yield item
        if report := _current.get():
            report(done + 1, total, unit)
