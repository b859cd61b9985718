"""How commands end whose work is kept stage by stage: interrupted, asked to end, or by a stage that crashed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

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


def end_on(numbers: Sequence[int], message: str, received: list[int] | None = None) -> None:
    """Have signals raise `KeyboardInterrupt`, or end the process at once while it imports.

    An import that an exception cuts off leaves half a module behind: what imports it next recurses without end, and
    extensions in C++ abort. Nothing has been begun then that would need an orderly end.

    Args:
        numbers: of the signals; one that is ignored stays so, as under nohup.
        message: written where the process ends at once; its exit code is 128 and the number.
        received: gets the numbers of those that were raised.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if _imports(frame):
            os.write(2, f"{message}\n".encode())
            os._exit(128 + number)
        if received is not None:
            received.append(number)
        raise KeyboardInterrupt

    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handle)


def _imports(frame: FrameType | None) -> bool:
    """Return whether a frame was called by an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Context: SIGINT and SIGTERM end the process with a message, all blocks inside ended before: code 130 or 143."""
    signals: list[int] = []

    # SIGTERM is a cluster's or container's polite end; handled as Ctrl-C is, which Ray passes on as a plain one.
    end_on((signal.SIGINT, signal.SIGTERM), message, signals)
    try:
        yield
    except KeyboardInterrupt:
        console(stderr=True).print(message)
        sys.exit(128 + signals[0] if signals else 130)
