"""A local store of stages whose finished ones are also in a storage that other machines see.

In the storage a stage is ``stages/KEY/stage.json``, written last, and its files in ``stages/KEY/CHECKSUM/``, where the
checksum is that of this very ``stage.json``: machines that do the same stage at once never mix their files, the first
``stage.json`` wins, and the others take what it names.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import sha256_file, sync, write_json
from ..specs import Stage
from ..stage_records import StageRecord, parse_record
from ..stage_results import StageResult
from .files import removed_weights
from .folders import MARKER, RECORD, StageStore, checksum, covers
from .locks import hold_lock
from .storage import Storage

LIGHT_BYTES = 1 << 18
"""A stage that is only read from here comes without its larger files, unless it is an evaluation."""

_THREADS = 8


class SharedStore(StageStore):
    """A `StageStore` with a storage behind it.

    What is here may be light: larger files are only in the storage until `whole` is asked for. `is_done`, `read`
    and `verify` are about what is here, and take a light stage for what it is.

    Args:
        root: folder of this machine; processes of other machines need not see it.
        url: of the storage.
    """

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        self.storage = Storage(url)
        self._checked: set[str] = set()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of the stages that are neither here nor, whole, in the storage."""
        stored = self.storage.keys()
        return [key for key in keys if key not in stored and not (self.is_done(key) and not self.lacking(key))]

    def without_weights(self, keys: Iterable[str]) -> set[str]:
        """Return the keys of the stages that must run again before their weights can be read: not in the storage."""
        return super().without_weights(keys) - set(self.storage.keys())

    def publish(self, keys: Iterable[str]) -> int:
        """Bring stages that are only here into the storage, after comparing their bytes; returns how many."""
        stored, count = self.storage.keys(), 0
        for key in keys:
            if (
                self.is_done(key)
                and not self.removed(key)
                and (self._foreign(key) or key not in stored)  # not compared with this storage yet, or gone from it
                and (key in stored or not self.lacking(key))  # a light stage has not all files to send
            ):
                self.verify(key)
                count += self._upload(key)
        return count

    def gather(self, keys: Iterable[str]) -> None:
        """Bring here, light, those of the stages that are not."""
        absent = [key for key in keys if not self.path(key).is_dir()]
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self._fetch, absent))

    def ready(self, stage: Stage) -> Stage:
        """Bring here, whole, all that a stage reads, unless nothing is left to do for it."""
        complete = self.storage.has(stage.key) or (self.is_done(stage.key) and not self.lacking(stage.key))
        if complete and self.enough(stage):
            return stage
        return super().ready(stage)

    def enough(self, stage: Stage) -> bool:
        """Say what `StageStore.enough` says; of a stage that is not here, what is in the storage counts."""
        if self.path(stage.key).is_dir() or not self.storage.has(stage.key):
            return super().enough(stage)
        return covers(parse_record(self._stored_record(stage.key)[1], self.path(stage.key)), stage)

    def run(self, stage: Stage, work: Callable[[Path], StageResult]) -> StageRecord:
        """Do a stage unless it is complete here or in the storage, and bring it there; return its record.

        Where another machine was first, its stage takes the place of the one made here. A fit in the storage that keeps
        fewer ranks than are asked for is replaced.
        """
        key = stage.key
        self._exchange(key)
        if not super().enough(stage):
            with hold_lock(self.root, key):
                shutil.rmtree(self.path(key), ignore_errors=True)
            self._checked.discard(key)
        if not self.enough(stage):
            # Without its stage.json a stage is not whole; `_upload` removes the files that nobody names any more.
            self.storage.remove(f"stages/{key}/{RECORD}")
        if self.storage.has(key):
            self._agree(key)
        else:
            if self.lacking(key):
                self.set_aside(key)  # what it lacks was in the storage and is gone
            super().run(stage, work)
            self._upload(key)
        return self.record(key)

    def whole(self, key: str) -> Path:
        """Return the folder of a finished stage after bringing all its files here and comparing their bytes once."""
        folder = self.path(key)
        self._exchange(key)
        if self.removed(key):
            raise removed_weights(self.path(key))
        if self.lacking(key) and not self.storage.has(key):
            raise UserError(
                f"the stage {key} lacks files and is not in the storage {self.storage.shown}; name the storage that it "
                f"came from with --storage, or run the sweep again (its {MARKER} names {self.marker(key).storage!r})"
            )
        if key not in self._checked:
            if folder.is_dir():
                try:
                    self.verify(key)
                except UserError:
                    if not self.storage.has(key):
                        raise
                    with contextlib.suppress(FileNotFoundError):  # another process did
                        self.set_aside(key)
            self._agree(key)
            self._complete(key)
            self._checked.add(key)
        return folder

    def _exchange(self, key: str) -> None:
        """Take the light form from the storage instead of a stage whose weights were removed here."""
        if self.removed(key) and self.storage.has(key):
            with hold_lock(self.root, key):
                shutil.rmtree(self.path(key))
            self._fetch(key)

    def _foreign(self, key: str) -> bool:
        """Whether a stage that is here has not been compared with the storage yet."""
        return self.marker(key).storage != self.storage.shown

    def _agree(self, key: str) -> None:
        """Make what is here and what is in the storage the same."""
        if not self.path(key).is_dir():
            self._fetch(key)
        elif self._foreign(key):
            self._upload(key)

    def _fetch(self, key: str) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        with hold_lock(self.root, key):
            if not self.path(key).is_dir():
                self._take(key)

    def _take(self, key: str) -> None:
        """Make the light form of a stage of the storage; holds the lock."""
        part = self.root / f".part-{key}"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        raw, record = self._stored_record(key)
        small = [n for n, size in record["files"].items() if size <= LIGHT_BYTES or key.startswith("evaluate-")]
        for name in small:
            self._download(record, name, part)
        (part / RECORD).write_bytes(raw)
        # All on disk before the rename: a folder under its key counts as a finished stage.
        lacks = sorted(set(record["files"]) - set(small))
        write_json(part / MARKER, {"storage": self.storage.shown, "lacks": lacks})
        for path in [*part.rglob("*"), part]:
            sync(path)
        os.rename(part, self.path(key))
        sync(self.root)

    def _complete(self, key: str) -> None:
        with hold_lock(self.root, key):
            lacks = self.lacking(key)
            if not lacks:
                return
            record, folder = self.read(key), self.path(key)
            if self._stored_record(key)[1]["checksum"] != checksum(record):
                raise UserError(
                    f"{folder} is light and no longer what is in {self.storage.shown}; remove that folder, then "
                    "run the same command again"
                )
            # The marker changes last: a download that is cut off leaves the files listed, and is taken up again.
            for name in lacks:
                if not (folder / name).is_file():
                    # `read` takes the checksum out, and the path in the storage is made of it.
                    self._download(record | {"checksum": checksum(record)}, name, folder)
            write_json(folder / MARKER, {"storage": self.storage.shown, "lacks": []})

    def _download(self, record: Mapping[str, Any], name: str, folder: Path) -> None:
        target = folder / name
        beside = target.with_name(f".{target.name}.part")
        target.parent.mkdir(parents=True, exist_ok=True)
        source = f"stages/{record['key']}/{record['checksum'][:16]}/{name}"
        self.storage.fetch(source, beside)
        if beside.stat().st_size != record["files"][name] or sha256_file(beside) != record["sha256"][name]:
            beside.unlink()
            raise self._damaged(record["key"], f"{name} is not what was written")
        sync(beside)
        os.replace(beside, target)
        sync(target.parent)

    def _stored_record(self, key: str) -> tuple[bytes, dict[str, Any]]:
        """Return ``stage.json`` of the storage, its bytes and what they say."""
        raw = self.storage.read(f"stages/{key}/{RECORD}")
        try:
            record: dict[str, Any] = json.loads(raw)
            bare = {name: value for name, value in record.items() if name != "checksum"}
            fine = record["key"] == key and record["status"] == "done" and record["checksum"] == checksum(bare)
            inside = not any(p.is_absolute() or ".." in p.parts for p in map(PurePosixPath, record["files"]))
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, f"no readable {RECORD}") from error
        if not fine or not inside:
            raise self._damaged(key, f"{RECORD} has changed since it was written")
        return raw, record

    def _damaged(self, key: str, reason: str) -> UserError:
        return UserError(
            f"the stage {self.storage.shown}/stages/{key} is damaged ({reason}); remove it there, then the same "
            "command does only what is missing"
        )

    def _upload(self, key: str) -> bool:
        """Bring a stage that is here into the storage; returns False where it has one already."""
        with hold_lock(self.root, key):
            folder, prefix = self.path(key), f"stages/{key}"
            record, mine = self.read(key), (folder / RECORD).read_bytes()
            if set(record.get("sha256", ())) != set(record["files"]):
                raise UserError(
                    f"the stage {folder} was written before stages had checksums, without which it cannot go to "
                    f"{self.storage.shown}; remove it, then the same command runs it again"
                )
            first = True
            if not self.storage.has(key):
                inside = f"{prefix}/{checksum(record)[:16]}"
                sent = self.storage.sizes(inside)  # by an attempt that was cut off
                for name, size in record["files"].items():
                    if sent.get(name) != size:
                        self.storage.send(folder / name, f"{inside}/{name}")
                first = self.storage.claim(f"{prefix}/{RECORD}", mine) == mine
            winner = self._stored_record(key)[1]["checksum"]
            # A machine that still sends one of these loses the claim anyway, for there is a stage.json already.
            for other in {name.partition("/")[0] for name in self.storage.sizes(prefix)} - {winner[:16], RECORD}:
                self.storage.remove(f"{prefix}/{other}")
            if winner == checksum(record):
                write_json(folder / MARKER, {"storage": self.storage.shown, "lacks": self.lacking(key)})
                return first
            part = self.root / f".part-{key}"
            shutil.rmtree(part, ignore_errors=True)
            # `_take` clears this folder, and puts the winner's files in the place of ours.
            os.rename(folder, part)
            self._take(key)
            return False

    def send_results(self, folder: Path, files: Iterable[Path]) -> None:
        """Bring the files of a sweep's results into the storage, over older ones."""
        for file in files:
            self.storage.send(file, f"{folder.name}/{file.name}")
