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
from typing import Any

from .errors import UserError

_CHUNK_BYTES = 1 << 20


def canonical_json(value: Any) -> str:
    """Serialise plain data so that equal values give equal text: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 (hex) of plain data."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            total.update(chunk)
    return total.hexdigest()


def sha256_folder(folder: Path) -> str:
    """Return one sha256 over the names and contents of all files below a folder, hidden ones left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return digest([[p.relative_to(folder).as_posix(), sha256_file(p)] for p in files])


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old or the new content, never a part; the folder is made if missing.

    The file gets the permissions of any new file of this process (0666 without the umask's bits).

    Raises:
        UserError: the folder cannot be made or written to.
    """
    raw = data.encode() if isinstance(data, str) else data
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
        sync(path.parent)
    except BaseException:
        name.unlink(missing_ok=True)
        raise


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
        wanted = stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        probe.unlink()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != wanted:
            file.chmod(wanted)


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
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


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
