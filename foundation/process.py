"""Python processes that import nothing from the current folder and do not outlive the one that started them."""

import ctypes
import os
import select
import signal
import sys
from collections.abc import Mapping

import psutil

_PR_SET_PDEATHSIG = 1


def python_command(*words: str) -> list[str]:
    """Return the command that starts this Python interpreter without the current folder on its import path.

    Without ``-P``, ``python -m`` and ``python -c`` look for every module in the current folder first, so that a
    ``torch.py`` or ``json.py`` in it runs. ``PYTHONPATH`` still counts: the user has set it.

    Args:
        words: ``-m MODULE ARGUMENTS…`` or ``-c CODE ARGUMENTS…``.
    """
    return [sys.executable, "-P", *words]


def python_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return environment variables for a Python process and all that it starts, which act as ``-P`` does.

    Libraries start interpreters of their own: torchrun its ranks, multiprocessing and vLLM their workers.

    Args:
        variables: added to this process's.
    """
    return {**os.environ, **(variables or {}), "PYTHONSAFEPATH": "1"}


def cpu_seconds(process_id: int) -> float:
    """Return the CPU seconds, of all threads, that a process and those that it started have taken; 0 if it ended."""
    try:
        process = psutil.Process(process_id)
        family = [process, *process.children(recursive=True)]
        # Of children that ended, what their parents have waited for.
        return sum(sum(member.cpu_times()[:4]) for member in family)
    except psutil.Error:
        return 0.0


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent dies, and leave at once if it has died already.

    Outside Linux only the second is done.

    Args:
        parent: process id that the parent is known to have.
    """
    if sys.platform == "linux":
        # In this order: a parent that died before the call is gone when its id is asked for below.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_with(owner: int, group: bool = False) -> None:
    """Have this process killed when another one ends, whatever it does then; call it before it has other threads.

    A small process watches both. The kernel's signal at a parent's death, which `die_with_parent` asks for, comes when
    the *thread* that started the process ends, and a thread of this process could not act while C code holds the
    interpreter's lock. Where the system has no process descriptors (Linux before 5.3), nothing is watched.

    Args:
        owner: process id; this process leaves at once where it is gone already.
        group: whether all of this process's group is killed, which it has to lead then.
    """
    process = os.getpid()
    try:
        ends = [os.pidfd_open(owner), os.pidfd_open(process)]
    except ProcessLookupError:
        os._exit(1)
    except (AttributeError, OSError):
        return
    if os.fork() == 0:
        _watch(ends, process, group)
    for end in ends:
        os.close(end)


def _watch(ends: list[int], process: int, group: bool) -> None:
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # the owner decides what an interrupt means
        last = -1
        for end in sorted(ends):  # a pipe that is held open here would never end for who reads it
            os.closerange(last + 1, end)
            last = end
        os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
        poll = select.poll()
        for end in ends:
            poll.register(end, select.POLLIN)
        # By descriptor, not by id: an id may be another process's by now.
        if ends[0] in dict(poll.poll()):
            signal.pidfd_send_signal(ends[1], signal.SIGKILL)
            if group:
                os.killpg(process, signal.SIGKILL)
    finally:
        os._exit(0)
