"""Stages whose files a test has changed on purpose: their record is made to fit again."""

from pathlib import Path
from typing import Any

from lowrank_bench.foundation.files import read_json, sha256_file, write_json
from lowrank_bench.runners.store.files import MARKER, RECORD, checksum


def seal(stage: Path, **changes: Any) -> None:
    """Write the sizes and checksums that the files of a stage have now, and fields of its record.

    Args:
        stage: folder of the stage.
        changes: fields of ``stage.json``.
    """
    record = read_json(stage / RECORD)
    record.pop("checksum", None)
    files = [file for file in sorted(stage.rglob("*")) if file.is_file() and file.name not in (RECORD, MARKER)]
    record["files"] = {file.relative_to(stage).as_posix(): file.stat().st_size for file in files}
    record["sha256"] = {file.relative_to(stage).as_posix(): sha256_file(file) for file in files}
    record |= changes
    write_json(stage / RECORD, record | {"checksum": checksum(record)})
