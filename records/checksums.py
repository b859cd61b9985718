"""Checksums of a run's results, beside them in ``results.sha256``; ``sha256sum -c`` checks them too."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from ..foundation.errors import UserError
from ..foundation.files import read_limited, write_atomic

CSV_NAME, PARQUET_NAME = "results.csv", "results.parquet"
CHECKSUMS_NAME = "results.sha256"

_LINE = re.compile(r"([0-9a-f]{64})  ([^/\0]+)")
_MAX_BYTES = 1 << 16


def write_with_checksums(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files and their checksums, each file atomically.

    Who reads in between finds no checksums, never those of other files.

    Args:
        folder: made if missing.
        files: contents by name.
    """
    (folder / CHECKSUMS_NAME).unlink(missing_ok=True)
    for name, data in files.items():
        write_atomic(folder / name, data)
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    write_atomic(folder / CHECKSUMS_NAME, "".join(lines))


def check_not_results(path: Path) -> None:
    """Refuse to write a file over the results of a run.

    Raises:
        UserError: it has a checksum beside it.
    """
    if path.name in (CSV_NAME, PARQUET_NAME) and path.with_name(CHECKSUMS_NAME).is_file():
        raise UserError(f"{path} holds the results of a run and would be overwritten; name another file")


def check_against_checksums(path: Path, data: bytes) -> None:
    """Compare a file's bytes with the checksum beside it, if there is one for it.

    A file that was copied elsewhere has none; nothing is said of it then.

    Args:
        path: of the file.
        data: what it holds.

    Raises:
        UserError: they differ, or the checksums cannot be read.
    """
    beside = path.with_name(CHECKSUMS_NAME)
    try:
        lines = read_limited(beside, _MAX_BYTES).decode("ascii").split("\n")
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        lines = ["damaged"]
    matches = [_LINE.fullmatch(line) for line in lines[:-1]]
    sums = {match[2]: match[1] for match in matches if match}
    if lines[-1] or not all(matches) or (path.name in (CSV_NAME, PARQUET_NAME) and path.name not in sums):
        raise UserError(
            f"{beside} is damaged, so nothing says whether {path.name} is as it was written; type the same 'bench run' "
            f"again to write both, or delete {beside.name} to go without"
        )
    if sums.get(path.name, "") not in ("", hashlib.sha256(data).hexdigest()):
        raise UserError(
            f"{path} has changed since it was written (its checksum in {beside.name} is another); type the same "
            "'bench run' to write it again, or, where the change is yours, copy the file to another folder beside this "
            "one and name the copy"
        )
