"""A warm process inside a sandbox that forks one judge or one candidate a task, so that none has to start Python.

Covered: what isolates one task from the next and from this process. Not covered: what isolates this process from the
machine, which is bubblewrap's or `enter`'s work.

The judge's server holds no candidate, the candidate's server no test; neither reads anything but its parent's requests.
A candidate gets a sandbox of its own inside the server's: new process, network, mount, ipc, host-name and control-group
namespaces, a /proc, a /tmp and a /dev/shm of its own, and none of the capabilities that made them. Three processes:
the server's child keeps the namespaces' first process company; the first process (which the kernel protects from
signals from inside) waits for the candidate and reports how it ended; the candidate runs the program. How a judge ended
is reported by its server.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket

import candidate  # type: ignore[import-not-found]
import judge  # type: ignore[import-not-found]
from kernel import (  # type: ignore[import-not-found]
    NEW_OTHERS,
    NODEV,
    NOEXEC,
    NOSUID,
    give_up_privileges,
    mount,
    name_host,
    private_mounts,
    seal,
    unshare,
)
from syscalls import block  # type: ignore[import-not-found]

# What programs and tests import most; a child has them without reading a file.
for _name in (
    *("bisect", "collections", "copy", "datetime", "fractions", "functools", "hashlib", "heapq", "itertools", "math"),
    *("operator", "random", "re", "string", "sys", "time", "typing"),
):
    __import__(_name)

HOST_NAME = "sandbox"
"""What a candidate finds as its host's and domain's name."""

FAILED = 70
"""Exit code of a child that did not get as far as the program."""


def main(kind: str, socket_fd: int, tmp_bytes: int) -> None:
    """Serve requests until the parent closes its end: ``uid memory cpu processes file_size`` with descriptors.

    For a judge they are: to read from and to write to the candidate, the job, the verdict. For a candidate: to read
    from and to write to the judge. The last one is where to `report` how judge or candidate ended; neither has it. The
    answer to each request is a descriptor of the process to be killed, or ``x`` if there is none.
    """
    block()
    server = socket.socket(fileno=socket_fd)
    while True:
        # At most four descriptors for a judge, and the one for the status.
        message, fds, _, _ = socket.recv_fds(server, 256, 5)
        if not message:
            return
        status = fds.pop()
        uid, *numbers = map(int, message.split())
        child = os.fork()
        if child == 0:
            try:
                if kind == "judge":
                    os.close(status)
                    become_judge(server, fds, uid, numbers)
                else:
                    keep_candidate(server, fds, status, uid, numbers, tmp_bytes)
            except BaseException:
                os._exit(FAILED)
            os._exit(0)
        # Closed before waiting: a pipe's other end must see the end of the child that holds the only copy.
        for fd in fds:
            os.close(fd)
        # A candidate's handle is sent by `keep_candidate`, because it has to be that of the namespaces' first process.
        handle = os.pidfd_open(child)
        if kind == "judge":
            socket.send_fds(server, [b"p"], [handle])
        _wait(server, handle)
        os.close(handle)
        ended = wait_for(child)
        if kind == "judge":
            report(status, *ended)
        os.close(status)


def wait_for(child: int) -> tuple[int, float]:
    """Wait for a child's end; return its exit code (negative: a signal) and processor seconds.

    As first process of its namespace the caller also gets what others leave.
    """
    while True:
        pid, status, used = os.wait4(-1, 0)
        if pid == child:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def report(fd: int, code: int, cpu: float) -> None:
    """Write how a process ended, for `servers.Forked.status`, which does not always ask."""
    with contextlib.suppress(BrokenPipeError):
        os.write(fd, b"%d %.3f\n" % (code, cpu))


def _wait(server: socket.socket, handle: int) -> None:
    """Wait for a child's end; if the parent is gone before it, end here, and with this process the sandbox."""
    poll = select.poll()
    poll.register(server, 0)  # tells of a closed end only
    poll.register(handle, select.POLLIN)
    if any(fd != handle for fd, _ in poll.poll()):
        os._exit(0)


def become_judge(server: socket.socket, fds: list[int], uid: int, numbers: list[int]) -> None:
    """Judge one job in this process."""
    os.setsid()
    server.close()
    for standard_fd, fd in enumerate((fds[2], fds[3])):
        os.dup2(fd, standard_fd)
    judge.main(fds[0], fds[1], *numbers, uid)


def keep_candidate(
    server: socket.socket, fds: list[int], status: int, uid: int, numbers: list[int], tmp_bytes: int
) -> None:
    """Start a candidate in new namespaces, tell the parent of their first process, and wait for its end."""
    try:
        unshare(NEW_OTHERS)
        name_host(HOST_NAME)
        ready, go = os.pipe()
        first = os.fork()
    except OSError:
        server.send(b"x")
        raise
    if first == 0:
        try:
            os.close(go)
            if os.read(ready, 1) == b"g":  # from now on the parent can kill this process
                _first_process(fds, status, uid, numbers, tmp_bytes)
        finally:
            os._exit(FAILED)
    os.close(ready)
    handle = os.pidfd_open(first)
    socket.send_fds(server, [b"p"], [handle])
    os.close(handle)
    server.close()
    for fd in (*fds, status):
        os.close(fd)
    os.write(go, b"g")
    os.close(go)
    os.waitpid(first, 0)


def _first_process(fds: list[int], status: int, uid: int, numbers: list[int], tmp_bytes: int) -> None:
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for standard_fd in range(3):
        os.dup2(null, standard_fd)
    # Closes the gaps between the descriptors that are needed: the server's socket must not reach the candidate.
    start = 3
    for fd in sorted((*fds, status)):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, 1024)
    private_mounts()
    try:  # processes alone: neither the machine's boot id and command line nor its settings
        mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC, "subset=pid")
    except OSError:  # before Linux 5.8
        mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, f"mode=1777,size={tmp_bytes},nr_inodes=4096")
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777,size=4096,nr_inodes=64")
    os.chdir("/tmp")
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # a machine out of memory ends a candidate, not the grader
    give_up_privileges(uid)
    seal()  # this process has no limits of its own, so a candidate of the same user must not take it over
    child = os.fork()
    if child == 0:
        try:
            # A program that held it could report itself how it ended.
            os.close(status)
            # 0, because the user was changed before the fork.
            candidate.main(fds[0], fds[1], *numbers, 0)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
    report(status, *wait_for(child))
    os._exit(0)
