"""Level ``namespaces``: isolates a server where there is no bubblewrap, with nothing but the kernel's own calls.

Two processes. This one stays outside, is killed with the grader and keeps one end of a pipe; its child becomes the
first process of the new namespaces, builds a file system of read-only views, gives up what it does not need and starts
Python again in there, so that nothing of the old root is left in it, not even the running program's file. The kernel
kills everything in the namespaces when that first process ends, and it is killed with this one.

Covered: what a sandbox can reach of the machine, as by bubblewrap. Not covered: limits, the filter for system calls and
what parts one task from the next, which are `limits`', `syscalls`' and `forker`'s work at both levels.
"""

from __future__ import annotations

import os
import select

from kernel import (  # type: ignore[import-not-found]
    ATTR_NODEV,
    ATTR_NOEXEC,
    ATTR_NOSUID,
    ATTR_READ_ONLY,
    BIND,
    NEW_OTHERS,
    NEW_USER,
    NODEV,
    NOEXEC,
    NOSUID,
    RECURSIVE,
    detach,
    die_with_parent,
    keep_capabilities,
    mount,
    new_root,
    no_new_privileges,
    private_mounts,
    set_mount,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per server
    from collections.abc import Sequence

NOBODY = 65534
_OLD = "/old"


def main(
    info_fd: int,
    grader: int,
    own_users: bool,
    capabilities: Sequence[int],
    view: Sequence[tuple[str, str, str]],
    tmp_bytes: int,
    command: Sequence[str],
) -> None:
    """Start a command in namespaces of its own, tell its process id, and wait for its end.

    Args:
        info_fd: where to write the process id, as JSON.
        grader: the process that started this one; without it there is nothing to do.
        own_users: whether the machine's superuser runs this; otherwise a user namespace is needed.
        capabilities: numbers of those that the command keeps.
        view: what it sees: ``bind``, ``device`` or ``link``, path, source.
        tmp_bytes: size of its /tmp.
        command: program and arguments, as seen from inside.
    """
    if not own_users:
        _own_user_namespace()
    unshare(NEW_OTHERS)
    # The child finds the pipe closed if this process ended before `die_with_parent` was in force there.
    alive, alive_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(alive_end)
        os.close(info_fd)
        os.setsid()
        _build(view, tmp_bytes)
        no_new_privileges()
        keep_capabilities(capabilities)
        die_with_parent()
        if select.select([alive], [], [], 0)[0]:  # the other process ended before this one was to be killed with it
            os._exit(1)
        os.execve(command[0], [*command], os.environ)  # which has nothing of the grader's
    die_with_parent()
    # The grader may have ended before the signal at its death was set; then nothing would end this process.
    if os.getppid() != grader:
        os._exit(1)
    os.write(info_fd, b'{"child-pid": %d}' % child)
    os.closerange(3, alive_end)
    os.closerange(alive_end + 1, 1024)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def _own_user_namespace() -> None:
    """Become nobody in a user namespace, where that user alone exists and no further one can be made."""
    # Read first: in the new namespace both are the overflow id until the maps are written.
    user, group = os.geteuid(), os.getegid()
    unshare(NEW_USER)
    # The kernel takes a group map from an ordinary user only after setgroups is denied.
    for name, text in (("setgroups", "deny"), ("uid_map", f"{NOBODY} {user} 1"), ("gid_map", f"{NOBODY} {group} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    try:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("0")
    except OSError:
        pass  # read-only in some containers; the filter for system calls refuses them too


def _build(view: Sequence[tuple[str, str, str]], tmp_bytes: int) -> None:
    """Build the file system of the sandbox and make it the root."""
    # Candidates have user ids of their own and must be able to enter the folders that are made here.
    os.umask(0o022)
    private_mounts()
    # pivot_root needs a mount point. The old root stays reachable below the new one until all views are bound.
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "mode=755,size=1m,nr_inodes=1024")
    os.mkdir("/tmp" + _OLD)
    new_root("/tmp", _OLD)
    for kind, path, source in view:
        if kind == "link":
            os.symlink(source, path)
        else:
            _bind(source, path, ATTR_READ_ONLY | ATTR_NOSUID | (ATTR_NOEXEC if kind == "device" else ATTR_NODEV))
    for folder in ("/dev/shm", "/proc", "/tmp"):
        os.mkdir(folder)
    mount("proc", "/proc", "proc", NOSUID | NODEV | NOEXEC)
    mount("tmpfs", "/dev/shm", "tmpfs", NOSUID | NODEV, "mode=1777,size=4096,nr_inodes=64")
    mount("tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, f"mode=1777,size={tmp_bytes},nr_inodes=4096")
    detach(_OLD)
    os.rmdir(_OLD)
    # Last, since folders were made in it; not recursive, since /tmp and /dev/shm stay writable.
    set_mount("/", ATTR_READ_ONLY)
    os.chdir("/tmp")


def _bind(source: str, path: str, attributes: int) -> None:
    """Show a file or folder of the old root, without its rights to change it."""
    source = _OLD + source
    if os.path.isdir(source):
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if not os.path.exists(path):
            with open(path, "x"):
                pass
    mount(source, path, None, BIND | RECURSIVE)
    # A second call, because the kernel ignores attributes in the call that binds.
    set_mount(path, attributes, recursive=True)
