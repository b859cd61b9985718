"""Small results that take long, remembered in the user's cache folder from one process to the next."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from typing import Any

from .checksums import open_cache

_MOST_RESULTS = 20_000


def remembered(key: str, compute: Callable[[], Any], valid: Callable[[Any], bool] = lambda _: True) -> Any:
    """Return a result from the cache, or compute and keep it.

    A cache that cannot be read or written only costs time.

    Args:
        key: all that the result depends on, versions of code included; a hash of it.
        compute: returns the result, which JSON can hold. What it raises is passed on, and nothing is kept.
        valid: says whether a result from the cache counts; where it does not, it is computed again.
    """
    with contextlib.suppress(sqlite3.Error, OSError, ValueError), contextlib.closing(_open()) as cache:
        if row := cache.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone():
            result = json.loads(row[0])
            if valid(result):
                return result
    result = compute()
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_open()) as cache, cache:
        cache.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (key, json.dumps(result)))
        cache.execute("DELETE FROM results WHERE rowid <= (SELECT max(rowid) FROM results) - ?", (_MOST_RESULTS,))
    return result


def _open() -> sqlite3.Connection:
    return open_cache("results.sqlite", "results (key TEXT PRIMARY KEY, result TEXT)")
