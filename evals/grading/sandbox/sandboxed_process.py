"""One process of this package in a sandbox of some level: how it is started, watched and killed.

Covered: a handle on the sandbox's first process, whose end is the end of all others in it; the end of everything with
the grader, by three ways that do not rely on each other (a signal at the parent's death for the process outside, one
for the first process inside, and the closed connection that a server waits for).
Not covered: what the sandbox holds, which is in `isolation`, and what it shows, which is in `view`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .packages import PACKAGES, linked_packages
from .view import ENVIRONMENT, GRADER, INSIDE, python, read_only_view

TMP_BYTES = 16 << 20
ISOLATING = ("bwrap", "namespaces")
"""Levels that isolate, the best first."""

_CAPABILITIES = {"CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_SYS_ADMIN": 21}
_FIRST_PRIVATE_UID, _PRIVATE_UIDS = 0x6000_0000, 1 << 28


class Ending(NamedTuple):
    """How a process ended.

    Attributes:
        code: exit code; negative for the signal that killed it.
        cpu: seconds of processor time that it used, None where that is not known.
    """

    code: int
    cpu: float | None = None


@cache
def own_users() -> bool:
    """Tell whether this is the machine's superuser, who can give each process a user id of its own.

    A superuser's processes are not counted against a process limit, so where it can, each becomes a user id that nobody
    has. A superuser without the rights, such as a container's, needs a user namespace like everybody else.
    """
    try:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        users = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return False
    effective = int(status["CapEff"], 16)
    able = all(effective >> number & 1 for number in _CAPABILITIES.values())
    # An id that this user namespace does not map cannot be taken.
    first, end = _FIRST_PRIVATE_UID, _FIRST_PRIVATE_UID + _PRIVATE_UIDS
    return os.geteuid() == 0 and able and any(a <= first and end <= a + count for a, _, count in users)


def private_uid(level: str) -> int:
    """Return a user id that nobody has, for one sandboxed process; 0 where the user cannot or need not be changed."""
    return _FIRST_PRIVATE_UID + secrets.randbelow(_PRIVATE_UIDS) if level in ISOLATING and own_users() else 0


@cache
def bwrap_version() -> tuple[int, ...]:
    """Return the version of the bubblewrap on the PATH, empty where there is none that says its version."""
    executable = shutil.which("bwrap")
    if executable is None:
        return ()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([executable, "--version"], capture_output=True, text=True, timeout=10, errors="replace")
        return tuple(map(int, re.findall(r"\d+", done.stdout)[:3]))
    return ()


@cache
def _bwrap_prefix() -> tuple[str, ...]:
    """Return the bwrap command up to what differs from sandbox to sandbox."""
    args = [shutil.which("bwrap") or "bwrap"]
    for kind in ("ipc", "pid", "net", "uts"):
        args.append(f"--unshare-{kind}")
    args += ["--unshare-cgroup-try", "--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    if not own_users():
        args += ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
    for name, value in ENVIRONMENT.items():
        args += ["--setenv", name, value]
    for kind, path, source in read_only_view():
        for parent in reversed(Path(path).parents[:-1]):  # bwrap would make them as private as they are outside
            args += ["--perms", "0755", "--dir", str(parent)]
        args += [{"bind": "--ro-bind", "device": "--dev-bind", "link": "--symlink"}[kind], source, path]
    args += ["--size", "4096", "--tmpfs", "/dev/shm", "--proc", "/proc"]
    args += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return tuple(args)


def _python(module: str, home: str, packages: str, arguments: Sequence[object]) -> list[str]:
    """Return the command that runs ``MODULE.main(*arguments)`` of this folder, which is at ``home``."""
    call = f"{module}.main({', '.join(map(repr, arguments))})"
    path = f"import sys; sys.path.append({packages!r}); sys.path.insert(0, {home!r})"
    # The folder leaves the path before anything runs: a program must not find the grader's modules by an import.
    code = f"{path}; import {module}; sys.path.pop(0); {call}"
    return [python()[0], "-s", "-S", "-P", "-B", "-c", code]


class SandboxedProcess:
    """One process of this package in a sandbox. It runs ``MODULE.main(*arguments)``.

    Args:
        level: ``bwrap``, ``namespaces`` or ``rlimits``.
        module: ``forker`` or, at level ``rlimits``, ``candidate`` or ``judge``.
        arguments: plain values.
        fds: the descriptors that it keeps.
        stdin, stdout: descriptors, or None for /dev/null.
        capabilities: what a server needs to make sandboxes inside its own, and to change users.
    """

    def __init__(
        self,
        level: str,
        module: str,
        arguments: Sequence[int | str],
        fds: Sequence[int],
        stdin: int | None = None,
        stdout: int | None = None,
        capabilities: Sequence[str] = (),
    ) -> None:
        self.level = level
        self._info_read = self._first_process = self._stderr = -1
        self._last_output = ""
        child_fds: list[int] = []
        stderr = subprocess.DEVNULL
        visible_paths = (GRADER, PACKAGES) if level in ISOLATING else (str(INSIDE), linked_packages())
        command = _python(module, *visible_paths, arguments)
        try:
            if level in ISOLATING:
                self._info_read, info = os.pipe()
                child_fds.append(info)
                self._stderr, stderr = os.pipe()
                child_fds.append(stderr)
                names = [*capabilities, *(("CAP_SETUID", "CAP_SETGID") if own_users() else ())]
                if level == "bwrap":
                    capability_options = [word for name in names for word in ("--cap-add", name)]
                    command = [*_bwrap_prefix(), *capability_options, "--info-fd", str(info), *command]
                else:
                    capability_numbers = tuple(_CAPABILITIES[name] for name in names)
                    entry = (info, os.getpid(), own_users(), capability_numbers, read_only_view(), TMP_BYTES, command)
                    command = _python("enter", str(INSIDE), PACKAGES, entry)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                stdout=subprocess.DEVNULL if stdout is None else stdout,
                stderr=stderr,
                pass_fds=[*fds, *child_fds[:1]],
                start_new_session=True,
                env=ENVIRONMENT,
            )
        except BaseException:
            self._close_fds()
            raise
        finally:
            for fd in child_fds:
                os.close(fd)

    def attach(self) -> bool:
        """Take hold of the sandbox's first process, before it is given anything to run; False if it did not start."""
        if self.level not in ISOLATING:
            return True
        with os.fdopen(self._info_read) as info:
            self._info_read = -1
            try:
                pid = int(json.load(info)["child-pid"])
                handle = os.pidfd_open(pid)
            except (ValueError, KeyError, ProcessLookupError):
                return False
        try:  # the number may be another process's by now, but not a child of this one's
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:  # gone, or hidden by the way that /proc is mounted
            parent = str(self.process.pid) if self.process.poll() is None else ""
        if parent != str(self.process.pid):
            os.close(handle)
            return False
        self._first_process = handle
        return True

    def last_output(self) -> str:
        """Return the last line that a sandbox wrote before it ended without having started; ends it."""
        self.end()
        return self._last_output

    def status(self, seconds: float) -> Ending | None:
        """Return how it ended, waiting for that up to so long before killing."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        self.end()
        return Ending(self.process.returncode)

    def end(self) -> None:
        """Kill what is left and wait until all of it is gone. May be called again."""
        if self._first_process >= 0:  # its pidfd can be read only when every process in the namespace is gone
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first_process, signal.SIGKILL)
            select_readable(self._first_process)
            os.close(self._first_process)
            self._first_process = -1
        elif self.level in ISOLATING:
            self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self._stderr >= 0 and select_readable(self._stderr, 1):
            lines = os.read(self._stderr, 1 << 16).decode(errors="replace").splitlines()
            self._last_output = next((line.strip() for line in reversed(lines) if line.strip()), "")[:200]
        self._close_fds()

    def close(self) -> None:
        """End it."""
        self.end()

    def _close_fds(self) -> None:
        for fd in (self._info_read, self._stderr):
            if fd >= 0:
                os.close(fd)
        self._info_read = self._stderr = -1


def select_readable(fd: int, seconds: float | None = None) -> bool:
    """Wait until a descriptor can be read; return False when the time is up. Works for any descriptor number."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(None if seconds is None else max(0, int(seconds * 1000))))
