"""Storage that several machines reach by URL through fsspec: ``s3://``, ``gs://``, ``file://`` and others."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from ...foundation.errors import UserError
from ...foundation.files import sync

_FIRST_WAIT_SECONDS = 0.5  # doubles with each attempt
_HOPELESS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_RECORD = "stage.json"
Result = TypeVar("Result")

PROTOCOLS = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "hdfs", "sftp", "ssh", "smb", "file", "local")
"""Protocols of fsspec that hold files of their own; others read a URL inside the URL or run code."""


def check_url(url: str) -> None:
    """Refuse what is no URL of a place that other processes can see, without asking it.

    Raises:
        ValueError: one sentence about it.
    """
    protocol, separator, path = url.partition("://")
    shown = hide_password(url)
    if not separator or not protocol or not path.strip("/"):
        raise ValueError(
            f"the storage '{shown}' is no URL; write s3://BUCKET/FOLDER, gs://BUCKET/FOLDER or file:///FOLDER"
        )
    if "::" in url:
        raise ValueError(f"the storage '{shown}' chains several URLs with '::'; name one, such as s3://BUCKET/FOLDER")
    if protocol == "memory":
        raise ValueError("memory:// is seen by one process alone; use file:///FOLDER for a folder of this machine")
    if protocol not in PROTOCOLS:
        raise ValueError(
            f"the storage '{shown}' has a protocol that is not allowed; allowed are {', '.join(PROTOCOLS)}, "
            "such as s3://BUCKET/FOLDER"
        )
    if protocol in ("file", "local") and not path.startswith("/"):
        raise ValueError(f"the storage '{shown}' depends on where a process runs; write three slashes: file:///{path}")


def hide_password(url: str) -> str:
    """Return a URL with stars in the place of its password, for messages and files."""
    return re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:***@", url)


class Storage:
    """One folder of a storage: files under names; a ``stage.json`` marks a whole stage.

    An operation is tried several times, with growing waits, and then ends with a `UserError` of one sentence.

    Args:
        url: of the folder; made when something is written.
        attempts: how often an operation is tried that fails for a reason that may pass.
    """

    def __init__(self, url: str, attempts: int = 5) -> None:
        self.url, self.attempts = url.rstrip("/"), attempts
        self.shown = hide_password(self.url)

    def __reduce__(self) -> tuple[type[Storage], tuple[str, int]]:
        return Storage, (self.url, self.attempts)  # connections stay in their process

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        """fsspec's file system, and the folder's path in it."""
        from fsspec.core import url_to_fs

        protocol = self.url.partition("://")[0]
        options = {"auto_mkdir": True} if self._local else {}
        try:
            # Other machines write too, so nothing that was listed may be remembered.
            return url_to_fs(self.url, use_listings_cache=False, skip_instance_cache=True, **options)
        except ImportError as error:
            raise UserError(
                f"storage at {protocol}:// needs a package that is missing here ({error}); install it on every "
                "machine, or use file:///FOLDER for a folder that all machines share"
            ) from error
        except ValueError as error:
            raise UserError(f"the storage {self.shown} cannot be used ({error}); see docs/clusters.md") from error

    @property
    def _fs(self) -> Any:
        return self._opened[0]

    @property
    def _local(self) -> bool:
        return self.url.partition("://")[0] in ("file", "local")

    def _at(self, name: str) -> str:
        return f"{self._opened[1]}/{name}"

    def check(self) -> None:
        """Write a file, read it back and remove it.

        Raises:
            UserError: the storage cannot be reached, or does not let in.
        """
        with self.beacon() as name:
            if not self.sees(name):
                raise UserError(f"the storage {self.shown} does not keep what is written; see docs/clusters.md")

    @contextlib.contextmanager
    def beacon(self) -> Iterator[str]:
        """Keep a small file there for a while, by which another machine tells that it sees this very storage."""
        name = f".run-{uuid.uuid4().hex}"
        self._try("written to", lambda: self._fs.pipe_file(self._at(name), b"bench"))
        try:
            yield name
        finally:
            with contextlib.suppress(Exception):
                self._fs.rm_file(self._at(name))

    def sees(self, name: str) -> bool:
        """Whether a file is there."""
        return bool(self._try("read", lambda: self._fs.exists(self._at(name))))

    def has(self, key: str) -> bool:
        """Whether a whole stage is there."""
        return self.sees(f"stages/{key}/{_RECORD}")

    def keys(self) -> set[str]:
        """Return the keys of all whole stages that are there."""
        names = (name.split("/") for name in self.sizes("stages"))
        return {parts[0] for parts in names if parts[1:] == [_RECORD]}

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        return bytes(self._try("read", lambda: self._fs.cat_file(self._at(name))))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the bytes of each file below a folder, by its name in it; empty where there is none."""
        start = self._at(folder) + "/"

        def look() -> dict[str, int]:
            try:
                infos = self._fs.find(start, detail=True)
            except FileNotFoundError:
                return {}
            return {path.rpartition(start.lstrip("/"))[2]: int(info["size"]) for path, info in infos.items()}

        return self._try("read", look)

    def send(self, file: Path, name: str) -> None:
        """Copy a local file there, over what bears the name."""

        def put() -> None:
            target = self._at(name)
            self._fs.put_file(str(file), target)
            if self._local:
                # Folders that were made on the way are entries of their parents, up to the storage's own folder.
                for path in [Path(target), *list(Path(target).parents)[: name.count("/") + 1]]:
                    sync(path)

        self._try("written to", put)

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from there."""
        self._try("read", lambda: self._fs.get_file(self._at(name), str(file)))

    def claim(self, name: str, content: bytes) -> bytes:
        """Write a small file unless there is one; return what is there then, ours or another's.

        Exclusive where the storage is: on local and NFS folders, and where the file system of fsspec knows conditional
        writes (S3, Google, Azure). Elsewhere two machines may succeed in the same moment, the later one for good.
        """
        target = self._at(name)

        def create() -> None:
            if self._local:
                # `os.link` fails where the name exists, and what it names is complete: nobody reads a part of a file.
                beside = Path(f"{target}.{uuid.uuid4().hex}")
                beside.parent.mkdir(parents=True, exist_ok=True)
                try:
                    beside.write_bytes(content)
                    sync(beside)
                    os.link(beside, target)
                    sync(beside.parent)
                finally:
                    beside.unlink(missing_ok=True)
                return
            try:
                self._fs.pipe_file(target, content, mode="create")
            except (TypeError, NotImplementedError):
                if not self._fs.exists(target):
                    self._fs.pipe_file(target, content)

        def settle() -> bytes:
            # A writer may have succeeded and only its answer been lost, so what is there decides, not the error.
            try:
                create()
            except Exception:
                if not self._fs.exists(target):
                    raise
            return bytes(self._fs.cat_file(target))

        return self._try("written to", settle)

    def remove(self, name: str) -> None:
        """Remove a file or folder if that is possible; failing to is no error."""
        with contextlib.suppress(Exception):
            self._fs.rm(self._at(name), recursive=True)

    def _try(self, verb: str, action: Callable[[], Result]) -> Result:
        for attempt in range(self.attempts):
            try:
                return action()
            except UserError:
                raise
            except Exception as error:  # each file system has its own, botocore's and aiohttp's among them
                hopeless = isinstance(error, _HOPELESS) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EROFS)
                if hopeless or attempt + 1 == self.attempts:
                    why = " ".join(f"{type(error).__name__}: {error}".replace(self.url, self.shown).split())[:300]
                    raise UserError(
                        f"the storage {self.shown} cannot be {verb} from {socket.gethostname()} ({why}); mend that and "
                        "run the same command again: finished stages are kept"
                    ) from error
                time.sleep(_FIRST_WAIT_SECONDS * 2**attempt)
        raise AssertionError
