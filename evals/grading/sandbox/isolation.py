"""How well generated code is isolated, and how that is shown to hold before anything untrusted runs.

Level ``bwrap`` (bubblewrap 0.8 or newer)
    What is covered: own process, network, mount, ipc, host-name and control-group namespaces for every task; no
    network but an empty loopback, and no sockets that namespaces do not hold; the file system is the system's libraries
    and this Python with the packages on offer, read-only, and 16 MiB of /tmp that vanish; no environment of the
    grader's; no host name, boot id or kernel command line; no terminals; no capabilities; no keyrings; limits on
    memory, processor time, processes, open files, file size and pending signals; when the sandbox's first process is
    killed the kernel kills all others in it, whatever they did to hide. Candidates are forked by a warm process inside
    bubblewrap (`forker`), which keeps the right to make namespaces and runs nothing untrusted.
    What is not: the kernel itself (`syscalls` refuses some calls; there is no virtual machine); memory is limited for
    each process and processes are limited to 16, so one sandbox can hold 16 GiB at worst until its time is up, and is
    the first to go if the machine has no more; another sandbox's use of the same CPU; a grader that is killed (SIGKILL)
    in the very milliseconds in which bubblewrap 0.8 starts may leave an idle bwrap process, which never gets as far as
    running anything.

Level ``namespaces`` (no bubblewrap needed)
    The same by the kernel's own calls (`enter`), for a user whom the kernel lets make namespaces; Linux 5.12 or newer.

Level ``rlimits``
    Resource limits and the filter for system calls only: the program can read and write the user's files, use the
    network, leave daemons and tamper with the judge. It is refused unless weak isolation is allowed, and the level is
    in every record.

As superuser no user namespace is used; the processes inside become user ids that nobody has (`own_users`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
from functools import cache
from pathlib import Path

from ....foundation.errors import UserError
from .programs import Job, run_one
from .sandboxed_process import ISOLATING, bwrap_version
from .view import ENVIRONMENT

_OLDEST_BWRAP = (0, 8)
_INSTALL = "install bubblewrap 0.8 or newer (`apt install bubblewrap`, `dnf install bubblewrap`)"
_ALLOW = (
    "let this user make namespaces (`sysctl kernel.unprivileged_userns_clone=1`, "
    "`sysctl kernel.apparmor_restrict_unprivileged_userns=0`; in a container, start it with `--privileged`)"
)

_PROBE = """
import ctypes, mmap, os, resource, signal, socket
def probe(port, marker, name, folders, variables):
    holds = {}
    with socket.socket() as s:
        s.settimeout(1)
        holds["network"] = s.connect_ex(("127.0.0.1", port)) != 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        holds["route"] = s.connect_ex(("192.0.2.1", 9)) != 0
    try:
        socket.socket(40, socket.SOCK_STREAM).close()
        holds["virtual sockets"] = False
    except OSError:
        holds["virtual sockets"] = True
    for folder in folders:
        try:
            open(os.path.join(folder, name), "w").close()
        except OSError:
            pass
    holds["files"] = not os.path.exists(marker)
    holds["processes"] = sum(name.isdigit() for name in os.listdir("/proc")) <= 3
    holds["environment"] = not set(os.environ) - {"LC_CTYPE", "PWD", *variables}
    holds["user"] = os.geteuid() != 0
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    holds["capabilities"] = not any(int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    holds["new privileges"] = status["NoNewPrivs"].strip() == "1"
    libc = ctypes.CDLL(None)
    holds["new namespaces"] = libc.unshare(0x10000000) != 0
    holds["shared memory"] = libc.shmget(0, 1 << 20, 0o1600) < 0
    holds["file watches"] = libc.inotify_init1(0) < 0
    holds["host name"] = os.uname().nodename == "sandbox"
    holds["terminals"] = not os.path.exists("/dev/ptmx")
    holds["pending signals"] = 0 < resource.getrlimit(resource.RLIMIT_SIGPENDING)[1] <= 64
    holds["huge pages"] = errno_of(lambda: mmap.mmap(-1, 1 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)) == 1
    holds["memory limit"] = fails(lambda: bytearray(3 << 29), MemoryError)
    holds["file limit"] = all(fails(lambda: fill(path, 17), OSError) for path in ("/tmp/" + name, "/dev/shm/" + name))
    holds["processor limit"] = 0 < resource.getrlimit(resource.RLIMIT_CPU)[1] < 3600
    holds["process limit"] = fails(multiply, OSError)
    return holds
def errno_of(action):
    try:
        action()
    except OSError as error:
        return error.errno
def fails(action, error):
    try:
        action()
    except error:
        return True
    return False
def fill(path, count):
    try:
        with open(path, "wb") as file:
            for _ in range(count):
                file.write(bytes(1 << 20))
    finally:
        os.unlink(path)
def multiply():
    children = []
    try:
        for _ in range(32):
            child = os.fork()
            if child == 0:
                signal.pause()
            children.append(child)
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
"""


@cache
def failed_checks(level: str) -> tuple[str, ...]:
    """Run a probe in a sandbox of a level; return what does not hold, or why it does not start."""
    if level == "bwrap" and bwrap_version() < _OLDEST_BWRAP:
        version = ".".join(map(str, bwrap_version()))
        missing = "says no version" if shutil.which("bwrap") else "is not installed"
        return (f"bubblewrap {version} is too old" if version else f"bubblewrap {missing}",)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        marker = Path(folder) / "marker"
        marker.touch()
        name = f"lowrank-bench-probe-{secrets.token_hex(8)}"
        folders = [
            folder,
            os.path.expanduser("~"),
            os.getcwd(),
            "/",
            "/usr",
            "/usr/lib",
            "/var/tmp",
            "/tmp",
            "/dev/shm",
        ]
        arguments = f"{listener.getsockname()[1]}, {str(marker)!r}, {name!r}, {folders!r}, {[*ENVIRONMENT]!r}"
        test = f"holds = probe({arguments})\nassert all(holds.values()), [k for k, v in holds.items() if not v]"
        try:
            # Through the same path as a model's program, so that what is shown to hold is what will be used.
            verdict = run_one(Job(_PROBE, test, ("probe",)), level, timeout=20)
        except UserError as error:
            return (str(error),)
        # A sandbox may let its program write to a /tmp of its own; only a file that appears out here is a failure.
        escaped = [str(path) for path in (Path(writable) / name for writable in folders) if path.exists()]
    for path in escaped:
        Path(path).unlink(missing_ok=True)
    if escaped:
        return (f"the code sandbox ({level}) does not hold: a file came to exist at {escaped[0]}",)
    if verdict.passed:
        return ()
    return (f"the code sandbox ({level}) does not hold: {verdict.detail or verdict.kind}",)


def isolation_level(allow_weak: bool = False) -> str:
    """Return the best isolation that has been shown to hold in this process: one of `ISOLATING`, or ``rlimits``.

    Raises:
        UserError: only weak isolation can be had and it is not allowed.
    """
    for level in ISOLATING:
        if not failed_checks(level):
            return level
    if allow_weak:
        return "rlimits"
    reasons = "; ".join(failed_checks(level)[0] for level in ISOLATING)
    remedy = _ALLOW if bwrap_version() >= _OLDEST_BWRAP else _INSTALL
    raise UserError(
        f"cannot run model-written code safely ({reasons}); {remedy}, or pass --allow-weak-isolation on a machine "
        "that you can afford to lose"
    )
