"""A filter for system calls (seccomp) for servers and all that they fork, so for every program in every sandbox.

What is covered: calls that would get around the other limits. No sockets but Unix and internet ones (AF_VSOCK leads to
a virtual machine's host past every network namespace); no user namespaces, whose first process would have capabilities,
and so none of the calls that need them; no memory that no limit counts (System V, message queues, memfd); no keyrings,
which outlive the sandbox; no huge pages and no pipes larger than usual, which are taken from a stock that the whole
host or user shares; no tracing; none of the large kernel interfaces that a program does not need (bpf, io_uring,
perf, userfaultfd); no asynchronous I/O and no inotify, whose contexts and instances are counted for the whole host or
user, so that one program can use them up for all. They fail with "not permitted". It is installed once a server: a
filter a task would cost as much as the rest of the task's system calls.
What is not: all other system calls, which go to the kernel as they are (`mount` among them, which a server needs and
the kernel refuses to a program without capabilities); processors other than x86-64 and AArch64 (no filter there; the
self-check of `isolation` then says what does not hold).
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

from kernel import NEW_OTHERS, NEW_USER, no_new_privileges, prctl  # type: ignore[import-not-found]

_MACHINES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}
_CLONE, _SOCKET, _UNSHARE, _CLONE3 = (56, 220), (41, 198), (272, 97), 435
_MMAP, _HUGE_PAGES = (9, 222), 0x4_0000
_FCNTL, _SET_PIPE_SIZE = (72, 25), 1031

# Their numbers on x86-64 and AArch64; calls of recent years have the same everywhere.
_DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "setns": (308, 268),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_tree_attr": (467, 467),
    "open_by_handle_at": (304, 265),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "syslog": (103, 116),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    "io_setup": (206, 0),
    "io_destroy": (207, 1),
    "io_getevents": (208, 4),
    "io_submit": (209, 2),
    "io_cancel": (210, 3),
    "io_pgetevents": (333, 292),
    "inotify_init": (253, 26),  # AArch64 has inotify_init1 alone
    "inotify_init1": (294, 26),
    "inotify_add_watch": (254, 27),
    "inotify_rm_watch": (255, 28),
}
_NEW_NAMESPACES = NEW_USER | NEW_OTHERS
_FAMILIES = (1, 2, 10)
"""Unix, internet 4 and 6."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT, _FOURTH_ARGUMENT = 0, 4, 16, 24, 40
_ALLOW, _ERROR = 0x7FFF_0000, 0x0005_0000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_SET_SECCOMP, _FILTER_MODE = 22, 2

_blocked = False


def block() -> bool:
    """Install the filter for this process and all that it starts; False where it cannot be. Once is enough."""
    global _blocked
    machine = _MACHINES.get(os.uname().machine) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
    if _blocked or machine is None:
        return _blocked
    code = _program(*machine)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(buffer)))
    no_new_privileges()
    try:
        prctl(_SET_SECCOMP, _FILTER_MODE, ctypes.addressof(program))
    except OSError:  # a kernel without filters
        return False
    _blocked = True
    return True


def _program(column: int, architecture: int) -> bytes:
    """Assemble the filter. A jump goes that many instructions further, if the test holds and if it does not."""
    denied = [numbers[column] for numbers in _DENIED.values()]
    # A load of an argument overwrites the call's number, so each group with one decides both ways.
    body = [(_LOAD, 0, 0, _NUMBER)]
    if column == 0:
        body.append((_AT_LEAST, -1, 0, 0x4000_0000))  # the x32 numbering of the same calls
    body += [(_EQUAL, -1, 0, number) for number in denied]
    body += [
        (_EQUAL, 0, 1, _CLONE3),  # its flags are in memory, which a filter cannot read; libraries fall back to clone
        (_RETURN, 0, 0, _ERROR | _ENOSYS),
        (_EQUAL, 0, 2, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, -1, -2, _NEW_NAMESPACES),
        (_EQUAL, 0, 2, _UNSHARE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_EQUAL, -2, -1, NEW_OTHERS),  # what a server does for each candidate, which then has not the right to do it
        (_EQUAL, 0, 2, _MMAP[column]),
        (_LOAD, 0, 0, _FOURTH_ARGUMENT),
        (_ANY_BIT, -1, -2, _HUGE_PAGES),
        (_EQUAL, 0, 2, _FCNTL[column]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        (_EQUAL, -1, -2, _SET_PIPE_SIZE),
        (_EQUAL, 0, 5, _SOCKET[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        *((_EQUAL, -2, 0, family) for family in _FAMILIES),
        (_RETURN, 0, 0, _ERROR | _EAFNOSUPPORT),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERROR | _EPERM),
    ]
    # Under another architecture, as of 32-bit programs, the same numbers are other calls: all of those are refused.
    whole = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 0, -1, architecture), *body]
    allow, deny = len(whole) - 2, len(whole) - 1
    out = b""
    for index, (operation, yes, no, value) in enumerate(whole):
        targets = {-1: deny - index - 1, -2: allow - index - 1}
        out += struct.pack("HBBI", operation, targets.get(yes, yes), targets.get(no, no), value)
    return out
