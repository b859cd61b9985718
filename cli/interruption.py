"""How commands end whose work is kept stage by stage: interrupted, asked to end, or by a stage that crashed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .output import console, escape


@contextmanager
def resumable_work() -> Iterator[None]:
    """Context: SIGINT, SIGTERM or a crashed stage end the process with a sentence: exit code 130, 143 or 1."""
    from ..runners.executors.local import StageCrashed

    with interruptible("interrupted; finished stages are kept, run the same command again to go on"):
        try:
            yield
        except StageCrashed as crash:
            console(stderr=True).print(f"[bold red]error:[/] {escape(str(crash))}", soft_wrap=True, highlight=False)
            sys.exit(1)


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Context: SIGINT and SIGTERM end the process with a message, all blocks inside ended before: code 130 or 143."""
    signals: list[int] = []

    def terminate(number: int, frame: object) -> None:
        # A cluster's or container's polite end; handled as Ctrl-C is, which Ray passes on as a plain one.
        signals.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print(message)
        sys.exit(128 + signals[0] if signals else 130)
