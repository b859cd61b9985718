"""Killable worker processes for comparing MATH answers: a time limit an item, whatever the algebra does.

Limits by signal or by thread do not stop a computation inside C code or a regular expression, and fail outside the
main thread; a process can always be killed. Verdicts do not depend on the number of workers: every item is computed on
its own, and one that ran out of time is computed again, alone, with more time, before it counts.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from select import POLLIN, poll
from typing import NamedTuple

from ....foundation.process import python_command, python_environment
from ....foundation.progress import track
from ..metrics import Verdict

ITEM_SECONDS = 5.0
"""Of lm-evaluation-harness and math-verify."""

AGAIN_FACTOR = 3
_START_SECONDS = 120.0
_ITEMS_A_WORKER = 50
"""A worker's start costs as much as about so many items."""


class Request(NamedTuple):
    """One comparison: a rule of `worker`, the reference answer, and what it is compared with."""

    rule: str
    gold: str
    text: str


class Reply(NamedTuple):
    """Of one comparison: the verdict, and the answer that math-verify found in the text (None where it found none)."""

    verdict: Verdict
    answer: str | None = None


class Worker:
    """One process, started when first needed and again after it was killed."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def ask(self, request: Request, seconds: float) -> Reply:
        """Return the reply, ``timeout`` if the process took longer or died (out of memory or stack)."""
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
            answer = self._line(seconds)
        except BrokenPipeError:
            answer = None
        if answer is None:
            # Killed although it may only be slow: its answer must not be read as that to the next request.
            self.close()
            return Reply("timeout")
        return Reply(*json.loads(answer))

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            command = python_command("-m", f"{__package__}.worker", str(os.getpid()))
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=python_environment()
            )
            if self._line(_START_SECONDS) != "ready":
                self.close()
                raise RuntimeError(f"the process for comparing answers does not start: {' '.join(command)}")
        return self._process

    def _line(self, seconds: float) -> str | None:
        """Return the next line of output, or None if the time is up or the process is gone."""
        assert self._process is not None
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        waiting, end = poll(), time.monotonic() + seconds
        waiting.register(fd, POLLIN)
        while b"\n" not in self._buffer:
            left = end - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                return None
            # From the descriptor itself: `poll` does not see what a buffered reader has already taken.
            data = os.read(fd, 65536)
            if not data:  # end of file: the process is gone (killed for memory, or a stack overflow in C)
                return None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def close(self) -> None:
        """Kill the process if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process, self._buffer = None, b""


def compare_all(requests: Sequence[Request], workers: int | None = None, seconds: float = ITEM_SECONDS) -> list[Reply]:
    """Return the reply to each request; its verdict is ``correct``, ``wrong``, ``no-answer`` or ``timeout``.

    Args:
        requests: comparisons; equal ones are computed once.
        workers: processes at once; None is one per CPU, fewer for few requests.
        seconds: wall time of one comparison. One that takes longer is computed again alone with three times as much.
    """
    distinct = list(dict.fromkeys(requests))
    if not distinct:
        return []
    count = workers or min(os.cpu_count() or 1, -(-len(distinct) // _ITEMS_A_WORKER))
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    every = [Worker() for _ in range(count)]
    for worker in every:
        idle.put(worker)

    def ask(request: Request) -> Reply:
        worker = idle.get()
        try:
            return worker.ask(request, seconds)
        finally:
            idle.put(worker)

    try:
        with ThreadPoolExecutor(count) as pool:
            answered = track(pool.map(ask, distinct), len(distinct), "answers")
            replies = dict(zip(distinct, answered, strict=True))
        for request, reply in replies.items():
            # Alone and with more time: on a busy machine a slow item is not to count as unsolvable.
            if reply.verdict == "timeout":
                replies[request] = every[0].ask(request, seconds * AGAIN_FACTOR)
    finally:
        for worker in every:
            worker.close()
    return [replies[request] for request in requests]
