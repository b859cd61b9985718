"""Python processes that import nothing from the current folder and do not outlive the one that started them."""

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

_PR_SET_PDEATHSIG = 1


def python_command(*words: str) -> list[str]:
    """Return the command that starts this Python interpreter without the current folder on its import path.

    Without ``-P``, ``python -m`` and ``python -c`` look for every module in the current folder first, so that a
    ``torch.py`` or ``json.py`` that lies there runs. ``PYTHONPATH`` still counts: the user has set it.

    Args:
        words: ``-m MODULE ARGUMENTS…`` or ``-c CODE ARGUMENTS…``.
    """
    return [sys.executable, "-P", *words]


def python_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return environment variables for a Python process and all that it starts, which act as ``-P`` does.

    Libraries start interpreters of their own: torchrun its ranks, multiprocessing and vLLM their workers.

    Args:
        more: variables added to this process's.
    """
    return {**os.environ, **(more or {}), "PYTHONSAFEPATH": "1"}


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent dies, and leave at once if it has died already.

    Outside Linux only the second is done.

    Args:
        parent: process id that the parent is known to have.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
