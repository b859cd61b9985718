"""What a sandbox can see of the machine, at either level that isolates.

The system's libraries, this Python, the grader, and the packages on offer.
"""

from __future__ import annotations

import compileall
import os
import sys
from functools import cache
from pathlib import Path

from .packages import PACKAGES, package_paths

INSIDE = Path(__file__).resolve().parent
GRADER = "/grader"
"""Where this folder is inside of a sandbox."""

ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"),
}
"""All environment variables inside of a sandbox. Libraries start one thread each, since a task has few processes."""

_MODULES = ("candidate", "channel", "enter", "forker", "judge", "kernel", "limits", "syscalls", "wire")
_SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


_DEVICES = ("null", "zero", "full", "random", "urandom")
"""And no others: terminals are counted for the whole host."""


@cache
def python() -> tuple[str, str]:
    """Return this Python's real executable and its base prefix, outside any virtual environment."""
    executable = getattr(sys, "_base_executable", None) or sys.executable
    return os.path.realpath(executable), os.path.realpath(sys.base_prefix)


@cache
def read_only_view() -> tuple[tuple[str, str, str], ...]:
    """Return what is seen read-only: ``bind``, ``device`` or ``link``, the path inside, what it shows or points to."""
    for module in _MODULES:  # the sandbox cannot write, so each server would compile them again
        compileall.compile_file(str(INSIDE / f"{module}.py"), quiet=2)
    seen = [("bind", "/usr", "/usr")]
    for folder in _SYSTEM_FOLDERS:
        if os.path.islink(folder):
            seen.append(("link", folder, os.readlink(folder)))
        elif os.path.isdir(folder):
            seen.append(("bind", folder, folder))
    executable, prefix = python()
    for path in (prefix, executable):
        # A Python outside of the system's folders has to be shown as well.
        if not any(Path(path).is_relative_to(target) for _, target, _ in seen):
            seen.append(("bind", path, path))
    cache_of_libraries = "/etc/ld.so.cache"
    if os.path.isfile(cache_of_libraries):
        seen.append(("bind", cache_of_libraries, os.path.realpath(cache_of_libraries)))
    devices = [("device", f"/dev/{name}", f"/dev/{name}") for name in _DEVICES]
    streams = [("fd", "fd"), *((name, f"fd/{number}") for number, name in enumerate(("stdin", "stdout", "stderr")))]
    devices += [("link", f"/dev/{name}", f"/proc/self/{target}") for name, target in streams]
    packages = [("bind", f"{PACKAGES}/{name}", str(path)) for name, path in package_paths()]
    return (*seen, *devices, *packages, ("bind", GRADER, str(INSIDE)))
