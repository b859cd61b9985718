"""What the folder of a finished stage holds: its record, and whether its files are as they were when it was written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from ...foundation.checksums import remembered_sha256
from ...foundation.errors import UserError
from ...foundation.files import read_json

RECORD = "stage.json"
"""What a finished stage is, in its folder."""

MARKER = ".storage.json"
"""In the folder of a stage that is in a storage too (`SharedStore`): its URL, and the files that are only there."""

REMOVED = ".removed.json"
"""In the folder of a stage whose weights were removed after their last reader (``--keep needed``): their names."""

KEPT = ".kept-"
"""Before the name of a removed file: the part of it that reports read (spectra, or names and shapes)."""

KEY = re.compile(r"[a-z]+-[0-9a-f]{16}")
"""Names of the folders of stages."""

_FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("files", "sha256", "config", "inputs", "runtime", "result", "provenance"), dict),
    "title": str,
    "seconds": (int, float),
}
_SHA256 = re.compile(r"[0-9a-f]{64}")


class DamagedStage(UserError):
    """A stage folder that is not as it was written; ``reason`` names the file and what is wrong with it."""

    reason = ""


def damaged(folder: Path, reason: str) -> DamagedStage:
    """Build the error for a damaged stage folder.

    Args:
        folder: of the stage.
        reason: the file and what is wrong with it.
    """
    error = DamagedStage(
        f"the stage folder {folder} is damaged ({reason}); bench doctor --repair moves it aside, then the same command "
        "does only what is missing"
    )
    error.reason = reason
    return error


def reason_of(error: UserError) -> str:
    """Return the file and what is wrong with it, or the whole sentence of any other error."""
    return error.reason if isinstance(error, DamagedStage) else str(error)


def checksum(record: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a stage's record without its own checksum."""
    # Records of earlier versions hold infinite interval ends, which canonical JSON refuses.
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return ``stage.json`` without its own checksum, after checking that checksum and what the record is made of.

    Raises:
        DamagedStage: there is none, it has changed, or it cannot be one that a run wrote.
    """
    try:
        record = read_json(folder / RECORD)
        same = isinstance(record, dict) and record["key"] == folder.name and record["status"] == "done"
        written = record.pop("checksum", None) if same else None
        unchanged = same and written == checksum(record)
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise damaged(folder, f"no readable {RECORD}") from error
    if not same:
        raise damaged(folder, f"{RECORD} belongs to another stage")
    if not unchanged:
        raise damaged(folder, f"{RECORD} has changed since it was written")
    if wrong := _wrong_field(record):
        raise damaged(folder, f"{RECORD} {wrong}")
    checked: dict[str, Any] = record
    return checked


def _wrong_field(record: dict[str, Any]) -> str:
    """Say what in a record no run can have written, or return the empty string."""
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            return f"has no valid '{name}'"
    for name in ("started_at", "ended_at"):
        try:
            datetime.fromisoformat(record[name])
        except (KeyError, TypeError, ValueError):
            return f"has no valid time in '{name}'"
    for name, size in record["files"].items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name or type(size) is not int:
            return f"lists the file {name[:80]!r}, which no stage has"
    if record["files"].keys() != record["sha256"].keys():
        return "has not one checksum in 'sha256' for each file"
    if not all(isinstance(value, str) and _SHA256.fullmatch(value) for value in record["sha256"].values()):
        return "has no valid 'sha256'"
    if not all(isinstance(value, str) for value in record["inputs"].values()):
        return "has no valid 'inputs'"
    return ""


@dataclass(frozen=True)
class Marker:
    """What is known of a stage's copy in a storage: its URL, and the files that are only there; empty for no copy."""

    storage: str = ""
    lacks: tuple[str, ...] = ()


def read_marker(folder: Path) -> Marker:
    """Return what is known of a stage's copy in a storage; empty where there is none.

    Raises:
        DamagedStage: the marker cannot be read.
    """
    file = folder / MARKER
    try:
        known = read_json(file)
        if isinstance(known["storage"], str) and all(isinstance(name, str) for name in known["lacks"]):
            return Marker(known["storage"], tuple(known["lacks"]))
    except FileNotFoundError:
        return Marker()
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise damaged(folder, f"no readable {MARKER}")


def read_removed(folder: Path) -> list[str]:
    """Return the files of a stage that were removed after their last reader; empty where none were.

    Raises:
        DamagedStage: the list cannot be read.
    """
    try:
        names: list[str] = read_json(folder / REMOVED)["files"]
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise damaged(folder, f"no readable {REMOVED}")


def removed_weights(folder: Path) -> UserError:
    """Build the error for a reader of weights that were removed.

    Args:
        folder: of the stage.
    """
    return UserError(
        f"the weights of {folder} were removed when their sweep had read them (--keep needed), its records stay; type "
        "that 'bench run' again with --keep all to make them again"
    )


def check_sizes(folder: Path, files: Mapping[str, int], lacks: set[str]) -> None:
    """Check that the files of a stage are there and as large as they were.

    Args:
        folder: of the stage.
        files: sizes in bytes, by path inside the folder.
        lacks: those that may be missing.

    Raises:
        DamagedStage: one is missing or has another size.
    """
    for name, size in files.items():
        file = folder / name
        if name in lacks and not file.exists():
            continue
        if not file.is_file() or file.stat().st_size != size:
            state = "has another size than when it was written" if file.is_file() else "is missing"
            raise damaged(folder, f"{name} {state}")


def check_bytes(folder: Path, sums: Mapping[str, str], lacks: set[str]) -> None:
    """Check that the files of a stage hold what they held, and that no others lie beside them.

    A file that was put there would be read with the others, such as a checkpoint's further weights. Hidden files are
    left alone: nothing reads them, and file systems and desktops put theirs everywhere.

    Args:
        folder: of the stage.
        sums: sha256 (hex) by path inside the folder.
        lacks: those that may be missing.

    Raises:
        DamagedStage: one is another, or was added.
    """
    for name, expected in sums.items():
        file = folder / name
        if name in lacks and not file.exists():
            continue
        try:
            same = remembered_sha256(file) == expected
        except OSError as error:
            raise damaged(folder, f"{name} cannot be read: {error.strerror}") from error
        if not same:
            raise damaged(folder, f"{name} has changed since it was written")
    for file in sorted(folder.rglob("*")):
        inside = file.relative_to(folder)
        listed = inside.as_posix() in sums or inside == Path(RECORD) or file.is_dir()
        if not listed and not any(part.startswith(".") for part in inside.parts):
            raise damaged(folder, f"{inside} was added after it was written")


def stage_around(path: Path) -> Path | None:
    """Return the folder of the stage that a file or folder lies in, or None where it lies in none."""
    path = path.expanduser().absolute()
    return next((p for p in (path, *path.parents) if KEY.fullmatch(p.name) and (p / RECORD).exists()), None)
