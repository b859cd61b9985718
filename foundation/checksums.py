"""Checksums of files, remembered in the user's cache folder: large files are read once, not by each command."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path

from .files import sha256_file

LARGE_BYTES = 1 << 20
"""Files below this size are always read: that takes no longer than looking them up."""

CACHE = "LOWRANK_BENCH_CACHE"
"""Environment variable with the folder for what can be computed again."""

_SETTLED_SECONDS = 2.0
_MOST_FILES = 20_000
_PATIENCE_SECONDS = 1.0


def cache_folder() -> Path:
    """Return the folder for what can be computed again: as `CACHE` says, or ``~/.cache/lowrank-bench``."""
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lowrank-bench"


def remembered_sha256(file: Path) -> str:
    """Return the sha256 (hex) of a file's bytes, from memory where the file has not changed since it was computed.

    A remembered checksum counts while path, device, inode, size, and the times of the last change of the content
    (mtime) and of the file's entry (ctime) are the same, in nanoseconds. A program that writes to a file cannot keep
    its ctime, so overwriting and setting mtime back is seen. Not seen: what changes the medium without the file
    system (a failing disk, a write to the block device), and a change while the machine's clock was set back. A file
    that changed within the last two seconds is not remembered, for file systems keep times in steps.

    Raises:
        OSError: it cannot be read.
    """
    before = _identity(file)
    if file.stat().st_size < LARGE_BYTES:
        return sha256_file(file)
    name = os.fsencode(os.path.realpath(file))
    # A cache that cannot be read or written only costs time.
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_open()) as cache:
        row = cache.execute("SELECT sha256 FROM files WHERE path = ? AND identity = ?", (name, before)).fetchone()
        if row:
            return str(row[0])
    value = sha256_file(file)
    status = file.stat()
    age = time.time() - max(status.st_mtime, status.st_ctime)
    # A write within one tick of the file system's clock would leave the same times behind: wait until they are old.
    if _identity(file) == before and not 0 <= age < _SETTLED_SECONDS:
        with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_open()) as cache, cache:
            cache.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (name, before, value))
            # A replaced row gets a new rowid, so that the lowest are those that were written longest ago.
            cache.execute("DELETE FROM files WHERE rowid <= (SELECT max(rowid) FROM files) - ?", (_MOST_FILES,))
    return value


def _identity(file: Path) -> str:
    status = file.stat()
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def open_cache(name: str, table: str) -> sqlite3.Connection:
    """Open a database of the cache folder, which all processes of a user share and which may be deleted at any time.

    Args:
        name: of the file.
        table: name and columns of its table, made where it is missing.

    Raises:
        OSError, sqlite3.Error: it cannot be opened.
    """
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    cache = sqlite3.connect(folder / name, timeout=_PATIENCE_SECONDS)
    try:
        cache.execute(f"CREATE TABLE IF NOT EXISTS {table}")
    except sqlite3.DatabaseError:
        cache.close()
        raise
    return cache


def _open() -> sqlite3.Connection:
    return open_cache("checksums.sqlite", "files (path BLOB PRIMARY KEY, identity TEXT, sha256 TEXT)")
