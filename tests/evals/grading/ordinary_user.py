"""Runs Python code as a user without any rights, whoever runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

import lowrank_bench

UID = 54321

# The superuser's Python may lie in a folder that nobody else can enter. In a mount namespace of its own such a folder
# is covered by an open one that shows what is needed.
_BECOME = """
import os, sys
sys.path.insert(0, {inside!r})
import kernel
kernel.unshare(0x20000)
kernel.private_mounts()
handles = [(path, os.open(path, os.O_PATH)) for path in {needed!r}]
for path, handle in handles:
    for parent in [path[:end] for end in range(1, len(path)) if path[end] == "/"]:
        if os.path.exists(parent) and not os.stat(parent).st_mode & 1:
            kernel.mount("tmpfs", parent, "tmpfs", 0, "mode=755")
for path, handle in handles:
    if not os.path.exists(path):
        os.makedirs(path)
        kernel.mount(f"/proc/self/fd/{handle}", path, None, kernel.BIND | kernel.RECURSIVE)
os.setgroups([])
os.setresgid({uid}, {uid}, {uid})
os.setresuid({uid}, {uid}, {uid})
os.execv(sys.executable, [sys.executable, "-B", "-c", {code!r}])
"""


def run_as_ordinary_user(code: str, message: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new Python as an ordinary user without a home; ``message`` is its standard input."""
    root = Path(lowrank_bench.__file__).resolve().parent
    if os.geteuid() == 0:
        needed = [os.path.realpath(path) for path in (sys.base_prefix, sys.prefix, root)]
        values = {
            "{inside!r}": str(root / "evals" / "grading" / "sandbox"),
            "{needed!r}": needed,
            "{uid}": UID,
            "{code!r}": code,
        }
        code = _BECOME
        for key, value in values.items():
            code = code.replace(key, repr(value))
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "TMPDIR")}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, input=message, capture_output=True, text=True, env=environment, cwd="/")
