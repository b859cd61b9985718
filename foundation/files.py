"""Durable files and stable hashes."""

import errno
import hashlib
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

_CHUNK_BYTES = 1 << 20
_JSON_BYTES = 1 << 30


def canonical_json(value: Any) -> str:
    """Serialise plain data so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 (hex) of plain data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    total = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading bytes; pipes, devices, sockets and folders are refused without waiting for them.

    Raises:
        OSError: there is none, it is no regular file, or its name cannot be one.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except ValueError as error:  # a zero byte
        raise OSError(errno.EINVAL, str(error), str(path)) from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(handle, "rb")


def read_limited(path: Path, max_bytes: int) -> bytes:
    """Return the bytes of a regular file of limited size.

    Raises:
        OSError: see `open_regular`; or it is larger.
    """
    with open_regular(path) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes:,} bytes", str(path))
    return data


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; the folder is made if missing.

    The file gets the permissions of any new file of this process (0666 without the umask's bits). A device or a pipe
    with a reader, such as ``/dev/null`` or ``/dev/stdout``, is written to and not replaced.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    raw = data.encode() if isinstance(data, str) else data
    if _is_stream(path):
        return _write_stream(path, raw)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        name = path.parent / f".{path.name[:100]}.{uuid.uuid4().hex}"
        handle = _create(name)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"{path} cannot be written ({error.strerror}); name a place in a folder that can be written to"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():
            raise UserError(f"{path} is a folder; name a file")
        os.replace(name, path)
        sync(path.parent)  # the name is an entry of the folder, which has to reach the disk as well
    except BaseException:
        name.unlink(missing_ok=True)
        raise


def _is_stream(path: Path) -> bool:
    """Tell whether a path exists and is neither a file nor a folder; renaming a file over it would destroy a device."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _write_stream(path: Path, raw: bytes) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # a pipe without a reader is refused instead of waited for
        os.set_blocking(handle, True)
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
    except OSError as error:
        raise UserError(f"{path} is no file and cannot be written ({error.strerror}); name a file") from error


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def apply_umask(folder: Path) -> None:
    """Give all files below a folder the permissions of new files: 0666 without the umask's bits.

    safetensors writes files of mode 0600 whatever the umask is, and copies keep the mode of what they are of.
    """
    # A file made for the purpose says what holds here; asking the umask itself would change it for other threads.
    probe = folder / f".mode.{uuid.uuid4().hex}"
    handle = _create(probe)
    try:
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def sync(path: Path) -> None:
    """Make a file's content, or a folder's list of names, survive a power cut (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write plain data as readable JSON, atomically; numbers that JSON does not know become null (`finite`)."""
    text = json.dumps(finite(value), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(path, text + "\n")


def finite(value: Any) -> Any:
    """Return plain data with None for every infinite number and NaN, so that any reader of JSON can read it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        OSError: there is no such regular file, or it has more than 1 GiB.
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        return json.loads(read_limited(path, _JSON_BYTES))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def check_new_folder(path: Path) -> None:
    """Raise a `UserError` if ``path`` exists already or cannot be made; nothing is left of trying."""
    with suppress(_Tried), new_folder(path):
        raise _Tried


class _Tried(Exception):
    """Ends `new_folder` before its folder becomes the one that was asked for."""


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes ``path`` when all went well, and leaves nothing when not.

    Folder and files get the permissions that the umask asks for.

    Raises:
        UserError: ``path`` exists already, or cannot be made.
    """
    path = path.expanduser().resolve()
    if path.exists():
        raise UserError(f"{path} exists already; name a new folder with --out or remove it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent / f".{path.name[:100]}-{uuid.uuid4().hex}"
        part.mkdir()
    except OSError as error:
        raise UserError(f"{path} cannot be made ({error.strerror}); choose another folder with --out") from error
    try:
        yield part
        apply_umask(part)
        os.rename(part, path)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
