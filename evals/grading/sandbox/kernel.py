"""The kernel's calls that a sandbox is made of and Python does not offer: namespaces, mounts, capabilities.

Runs inside and outside of sandboxes, so it imports nothing of this package. Every call raises `OSError` if it fails.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` is slow to import, and this starts once per server
    from collections.abc import Iterable

_libc = ctypes.CDLL(None, use_errno=True)
_long, _text = ctypes.c_ulong, ctypes.c_char_p
_SIGNATURES = {
    "prctl": (ctypes.c_int, _long, _long, _long, _long),
    "unshare": (ctypes.c_int,),
    "sethostname": (_text, ctypes.c_size_t),
    "setdomainname": (_text, ctypes.c_size_t),
    "mount": (_text, _text, _text, _long, _text),
    "umount2": (_text, ctypes.c_int),
    "syscall": (_long, _long, _long, _long, _long, _long),
}

NEW_USER = 0x1000_0000
NEW_OTHERS = 0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000
"""Mount, control-group, host-name, ipc, process and network namespaces."""

NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE = 2, 4, 8, 1 << 12, 1 << 14, 1 << 18
ATTR_READ_ONLY, ATTR_NOSUID, ATTR_NODEV, ATTR_NOEXEC = 1, 2, 4, 8

_PDEATHSIG, _DUMPABLE, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 24, 38, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR = 2, 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_MOUNT_SETATTR, _AT_RECURSIVE, _HERE = 442, 0x8000, (1 << 64) - 100  # the last is AT_FDCWD (-100)
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DETACH = 2


def _call(name: str, *arguments: int | bytes | None) -> None:
    function = getattr(_libc, name)
    function.argtypes = _SIGNATURES[name]
    if function(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")


def prctl(option: int, value: int, more: int = 0) -> None:
    """Set an attribute of this process."""
    _call("prctl", option, value, more, 0, 0)


def unshare(flags: int) -> None:
    """Move into new namespaces; a new process namespace begins with the next child."""
    _call("unshare", flags)


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount a file system, or a part of another one."""
    kind_, data_ = (None if text is None else text.encode() for text in (kind, data))
    _call("mount", source.encode(), target.encode(), kind_, flags, data_)


def set_mount(target: str, attributes: int, recursive: bool = False) -> None:
    """Add attributes to a mount, or to all mounts below a path too (Linux 5.12)."""
    # The kernel's `mount_attr`: attributes to set, attributes to clear, propagation, user namespace.
    struct = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    path = ctypes.create_string_buffer(target.encode())
    flags = _AT_RECURSIVE if recursive else 0
    _call("syscall", _MOUNT_SETATTR, _HERE, ctypes.addressof(path), flags, ctypes.addressof(struct), 32)


def new_root(folder: str, old: str) -> None:
    """Make a mounted folder the root; the old root appears at ``old``, below it."""
    paths = [ctypes.create_string_buffer(path.encode()) for path in (folder, folder + old)]
    _call("syscall", _PIVOT_ROOT[os.uname().machine], *map(ctypes.addressof, paths), 0, 0, 0)
    os.chdir("/")


def detach(folder: str) -> None:
    """Unmount a folder and all below it."""
    _call("umount2", folder.encode(), _DETACH)


def name_host(name: str) -> None:
    """Name the host of this host-name namespace, and its domain."""
    for call in ("sethostname", "setdomainname"):
        _call(call, name.encode(), len(name.encode()))


def private_mounts() -> None:
    """Let no mount made from here on reach another namespace."""
    mount("none", "/", None, RECURSIVE | PRIVATE)


def die_with_parent() -> None:
    """Be killed when the thread that forked this process ends. A change of user or capabilities undoes it."""
    prctl(_PDEATHSIG, 9)


def seal() -> None:
    """Let no process of the same user read or trace this one."""
    prctl(_DUMPABLE, 0)


def no_new_privileges() -> None:
    """Let no program that this process starts gain rights by its file."""
    prctl(_NO_NEW_PRIVS, 1)


def keep_capabilities(capabilities: Iterable[int] = ()) -> None:
    """Give up all capabilities but these for good; those are kept by the next program too."""
    capabilities = frozenset(capabilities)
    _bound_capabilities(capabilities)
    mask = sum(1 << capability for capability in capabilities)
    # Version 3 has two blocks of effective, permitted and inheritable sets; all in use have numbers below 32.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, (ctypes.c_uint32 * 6)(mask, mask, mask)):
        raise OSError(ctypes.get_errno(), "capset")
    for capability in capabilities:
        prctl(_CAP_AMBIENT, _AMBIENT_RAISE, capability)


def give_up_privileges(uid: int) -> None:
    """Become a user that owns nothing (if given) and drop every capability for good."""
    _bound_capabilities(frozenset())  # while this process still may
    # The user last: without being root a process can no longer change its groups.
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    keep_capabilities()
    no_new_privileges()


def _bound_capabilities(capabilities: frozenset[int]) -> None:
    prctl(_CAP_AMBIENT, _AMBIENT_CLEAR)
    for capability in range(64):
        if capability not in capabilities and _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the kernel knows no further one, or this process may not change the set
