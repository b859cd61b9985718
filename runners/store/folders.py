"""Stage folders: named by a hash, written beside, renamed into place when complete, locked between processes."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ...foundation.errors import UserError
from ...foundation.files import apply_umask, digest, finite, read_json, sha256_file, sync, write_json
from ...foundation.memory import peak_memory_bytes, reset_peak_memory
from ..specs import ModelLocation, Stage
from ..stage_records import VERSION, StageRecord, parse_record
from ..stage_results import StageResult
from .files import (
    KEY,
    MARKER,
    RECORD,
    Marker,
    check_bytes,
    check_sizes,
    checksum,
    read_marker,
    read_record,
    read_removed,
    removed_weights,
    stage_around,
)
from .locks import hold_lock, lock_file

MODEL_FOLDER = "model"
"""Where a stage puts the checkpoint that it made, inside its folder or a ratio's."""


def ratio_folder(ratio: float) -> str:
    """Return the folder of one ratio inside a compress stage."""
    return f"ratio-{ratio:g}"


def resume_folder(root: Path, key: str) -> Path:
    """Return where a stage keeps what it can go on from when it is cut off."""
    return root / f".resume-{key}"


def covers(record: StageRecord, stage: Stage) -> bool:
    """Whether a finished fit keeps all the parts of its factors that a stage asks for; True for other kinds.

    Args:
        record: of the finished stage.
        stage: the same one, of a plan.
    """
    stored, needed = record.execution.ranks, getattr(stage.execution, "ranks", None)
    if stage.kind != "fit" or stored is None:
        return True
    return needed is not None and all(needed.get(name, rank + 1) <= rank for name, rank in stored.items())


class StageStore:
    """The folder with all stages of all sweeps.

    Args:
        root: made if missing. A stage lies in ``root/<key>``, its work in ``root/.part-<key>``, checkpoints of its
            training in ``root/.resume-<key>`` until it is done, what it left when it failed in ``root/failed``.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        """Return the folder of a stage, done or not."""
        return self.root / key

    def is_done(self, key: str) -> bool:
        """Whether the stage is complete.

        Raises:
            UserError: the folder is there but not whole; says which file is wrong.
        """
        folder = self.path(key)
        if not folder.is_dir():
            return False
        self.read(key)
        return True

    def read(self, key: str) -> dict[str, Any]:
        """Return ``stage.json`` of a finished stage after checking that its files are all there.

        Those that are only in its storage, where the stage is light, and removed weights may be missing.
        """
        record = read_record(self.path(key))
        check_sizes(self.path(key), record["files"], {*self.lacking(key), *self.removed(key)})
        return record

    def record(self, key: str) -> StageRecord:
        """Return the typed record of a finished stage, after the checks of `read`.

        Raises:
            UserError: the folder is damaged, its record holds no results of such a stage, or a later version wrote it.
        """
        return parse_record(self.read(key), self.path(key))

    def verify(self, key: str) -> None:
        """Compare the files of a finished stage with their checksums.

        Checksums of large files are remembered while the files stay the same (`remembered_sha256`).

        Raises:
            UserError: a file is missing, another than was written, or was added; names it.
        """
        record = self.read(key)
        check_bytes(self.path(key), record["sha256"], {*self.lacking(key), *self.removed(key)})

    def marker(self, key: str) -> Marker:
        """Return what is known of a stage's copy in a storage; empty where there is none."""
        return read_marker(self.path(key))

    def lacking(self, key: str) -> list[str]:
        """Return the files of a stage that may be in its storage alone: not empty where the stage is light."""
        return list(self.marker(key).lacks)

    def removed(self, key: str) -> list[str]:
        """Return the files of a stage that were removed after their last reader: not empty where weights are gone."""
        return read_removed(self.path(key))

    def enough(self, stage: Stage) -> bool:
        """Whether a stage is not done, or keeps all that is asked for; see `covers`."""
        return not self.is_done(stage.key) or covers(self.record(stage.key), stage)

    def without_weights(self, keys: Iterable[str]) -> set[str]:
        """Return the keys of the stages that must run again before their weights can be read."""
        return {key for key in keys if self.removed(key)}

    def whole(self, key: str) -> Path:
        """Return the folder of a finished stage that has all its files here.

        The storage that a run folder names is never opened: the folder may be another person's.

        Raises:
            UserError: some of its files are only in a storage, or were removed.
        """
        if self.removed(key):
            raise removed_weights(self.path(key))
        if self.lacking(key):
            raise UserError(
                f"some files of the stage {key} are only in a storage (its {MARKER} names "
                f"{self.marker(key).storage!r}); add --storage URL with a URL that you trust"
            )
        return self.path(key)

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys of the stages that have yet to run."""
        return [key for key in keys if not self.is_done(key)]

    def ready(self, stage: Stage) -> Stage:
        """Return a stage with the paths of what it reads in this store, after making sure that they are whole."""
        inputs = {role: path for role, path in stage.inputs.items() if KEY.fullmatch(path.partition("/")[0])}
        for path in inputs.values():
            self.whole(path.partition("/")[0])
        model, fit = inputs.get("model"), inputs.get("fit")
        return stage.located(
            model=ModelLocation(location=str(self.root / model)) if model else None,
            fit=self.root / fit if fit else None,
        )

    def keys(self) -> list[str]:
        """Return the names of all stage folders, damaged ones included, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(p.name for p in self.root.iterdir() if p.is_dir() and KEY.fullmatch(p.name))

    def set_aside(self, key: str) -> Path:
        """Move a stage folder to ``root/damaged``, where nothing is looked for, and return its new path."""
        with hold_lock(self.root, key):
            aside = self.root / "damaged" / key
            aside.parent.mkdir(exist_ok=True)
            number = 1
            while aside.exists():
                number += 1
                aside = aside.with_name(f"{key}.{number}")
            os.rename(self.path(key), aside)
            sync(self.root)
        return aside

    def cut_off(self) -> list[Path]:
        """Return what stages left behind whose process was killed and that nothing goes on from.

        The work of running stages is not among it.
        """
        left, resumable = [], self.resumable()
        for part in sorted([*self.root.glob(".part-*"), *self.root.glob(".resume-*")]):
            if part in resumable:
                continue
            # The process of a running stage holds this lock.
            lock = FileLock(lock_file(self.root, part.name.split("-", 1)[1]))
            try:
                with lock.acquire(blocking=False):
                    left.append(part)
            except Timeout:
                continue
        return left

    def resumable(self) -> list[Path]:
        """Return the checkpoints of trainings that are not done; the same command goes on from them."""
        folders = sorted(self.root.glob(".resume-*"))
        keys = {folder: folder.name.removeprefix(".resume-") for folder in folders}
        return [folder for folder, key in keys.items() if not self.path(key).is_dir() or self.removed(key)]

    def run(self, stage: Stage, work: Callable[[Path], StageResult]) -> StageRecord:
        """Do a stage unless it is complete, with its weights; return its record.

        Only one process works on a key; another one waits, logs for whom, and then finds it done. Where a stage is done
        again because its weights were removed and gives the same bytes, its first record stays. A fit that keeps fewer
        ranks than are asked for is done again.

        Args:
            stage: what to do.
            work: fills the folder it is given.

        Raises:
            UserError: from the work itself, or no space left on the device.
        """
        from ..provenance import provenance  # imports torch, which readers of finished stages do without

        self.root.mkdir(parents=True, exist_ok=True)
        key = stage.key
        with hold_lock(self.root, key):
            earlier = self.read(key) if self.is_done(key) else None
            known = parse_record(earlier, self.path(key)) if earlier else None
            enough = known is not None and covers(known, stage)
            if known and enough and not self.removed(key):
                return known
            part = self.root / f".part-{key}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            reset_peak_memory()
            started, clock, computed = datetime.now(UTC), time.perf_counter(), time.process_time()
            record: dict[str, Any] = {
                "version": VERSION,
                "key": key,
                "kind": stage.kind,
                "title": stage.title,
                "config": stage.spec.hashed(),
                "inputs": stage.inputs,
                "runtime": stage.execution.stored(),
                "started_at": started.isoformat(timespec="seconds"),
                "provenance": provenance().plain(),
            }
            try:
                result = work(part)
                record["result"] = result.plain()
                record["seconds"] = time.perf_counter() - clock + result.earlier_seconds()
                record["cpu_seconds"] = time.process_time() - computed + result.processes_cpu_seconds()
                record["peak_memory_bytes"] = max(peak_memory_bytes(), result.other_peak_memory())
                record["ended_at"] = datetime.now(UTC).isoformat(timespec="seconds")
                record["status"] = "done"
                files = [file for file in sorted(part.rglob("*")) if file.is_file()]
                record["files"] = {file.relative_to(part).as_posix(): file.stat().st_size for file in files}
                record["sha256"] = {file.relative_to(part).as_posix(): sha256_file(file) for file in files}
                # As JSON stores it, or the checksum would not be that of the record as it is read back.
                record = finite(record)
                if earlier and enough and earlier["sha256"] == record["sha256"]:
                    record = earlier
                write_json(part / RECORD, record | {"checksum": checksum(record)})
                # All on disk before the rename, as a folder under its key counts as whole. The checkpoints to
                # resume from go after it: until then a restart needs them.
                apply_umask(part)
                for path in [*part.rglob("*"), part]:
                    sync(path)
                self._put(part, key)
                shutil.rmtree(resume_folder(self.root, key), ignore_errors=True)
            except BaseException as error:
                self._keep_failure(record, error, time.perf_counter() - clock)
                shutil.rmtree(part, ignore_errors=True)
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise UserError(
                        f"no space is left on the device of {self.root} (stage {stage.title or key}); free some or "
                        "choose another folder with --out, then run the same command again"
                    ) from error
                raise
            return self.record(key)

    def _put(self, part: Path, key: str) -> None:
        """Rename finished work into place, instead of the stage whose weights were removed."""
        folder, old = self.path(key), self.root / f".part-{key}.removed"
        shutil.rmtree(old, ignore_errors=True)
        if folder.is_dir():
            # A folder cannot be renamed over one that is not empty. Cut off in between, the stage is done again.
            os.rename(folder, old)
        os.rename(part, folder)
        sync(self.root)
        shutil.rmtree(old, ignore_errors=True)

    def _keep_failure(self, record: dict[str, Any], error: BaseException, seconds: float) -> None:
        record |= {"status": "failed", "seconds": seconds, "error": f"{type(error).__name__}: {error}"}
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        try:
            folder = self.root / "failed"
            folder.mkdir(exist_ok=True)
            (folder / f"{record['key']}-{stamp}.json").write_text(json.dumps(finite(record), indent=2, default=str))
        except OSError:
            pass  # the disk may be full: the error itself matters more than its record


def input_digests(stage: Stage) -> dict[str, str]:
    """Return what the finished stages that a stage reads hold, as one sha256 over their files' by role.

    Its key says what they are of; a stage that was run again on another machine may differ in its last digits.
    """
    digests = {}
    for role, source in stage.inputs.items():
        key = source.partition("/")[0]
        if KEY.fullmatch(key):
            here = stage.location_of(role)
            folder = next(path for path in (here, *here.parents) if path.name == key)
            record = read_json(folder / RECORD)
            # Stages that are older than checksums have sizes alone.
            digests[role] = digest(record.get("sha256", record["files"]))
    return digests


def verify_around(path: Path) -> None:
    """Compare the files of the stage that a file or folder lies in with their checksums; nothing where it is in none.

    Raises:
        UserError: see `StageStore.verify`; or weights in that folder were removed.
    """
    if os.path.exists(path) and (folder := stage_around(path)):
        store, inside = StageStore(folder.parent), path.expanduser().absolute()
        store.verify(folder.name)
        if any((folder / name).is_relative_to(inside) for name in store.removed(folder.name)):
            raise removed_weights(folder)
