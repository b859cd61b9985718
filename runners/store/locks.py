"""Locks of stages between processes, and lines on the log that say for whom one waits."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ...foundation.files import read_json, write_json

FIRST_NOTICE_SECONDS = 0.5
NOTICE_SECONDS = 60.0
"""A process that waits says so after the first time, and again each time the second has passed."""

_log = logging.getLogger(__name__)


def lock_file(root: Path, key: str) -> Path:
    """Return the file by whose lock one process at a time works on a stage."""
    return root / f".lock-{key}"


@contextmanager
def hold_lock(root: Path, key: str) -> Iterator[None]:
    """Hold the lock of a stage; while another process has it, log which process, on which host, and since when.

    Args:
        root: folder of the stages, which exists.
        key: of the stage.
    """
    lock, holder = FileLock(lock_file(root, key)), root / f".holder-{key}"
    started, patience = time.monotonic(), FIRST_NOTICE_SECONDS
    while True:
        try:
            lock.acquire(timeout=patience)
            break
        except Timeout:
            waited, file = time.monotonic() - started, lock_file(root, key)
            _log.warning("waiting for the lock %s for %.0f s: %s works on that stage", file, waited, _describe(holder))
            patience = NOTICE_SECONDS
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(Exception):  # a full disk: the work says so, and the note is only for those who wait
            write_json(holder, {"process": os.getpid(), "host": socket.gethostname(), "since": since})
        yield
    finally:
        # Before the lock is released, or this could remove the note of the process that has it next.
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def _describe(holder: Path) -> str:
    try:
        note = read_json(holder)
        since = datetime.fromisoformat(note["since"])
        minutes = (datetime.now(UTC) - since).total_seconds() / 60
        return f"process {int(note['process'])} on {str(note['host'])[:80]!a}, since {since} ({minutes:.0f} min),"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
