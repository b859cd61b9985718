"""Task files behind finished stages: their benchmarks are known again from the records, whatever became of the file."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..evals.tasks.files.opening import add_definition
from ..foundation.errors import UserError
from ..foundation.files import read_json
from .store.files import RECORD


def know_task_of(record: Mapping[str, Any] | Path) -> None:
    """Make the task file's benchmarks known that a stage was run with; does nothing for other stages.

    Where the data are gone the benchmarks stay unknown, and who asks for one is told so.

    Args:
        record: of the stage as plain data, or its folder.
    """
    with suppress(UserError, OSError, ValueError):
        plain = read_json(record / RECORD) if isinstance(record, Path) else record
        definition = plain.get("runtime", {}).get("task_file")
        if definition:
            add_definition(definition)
