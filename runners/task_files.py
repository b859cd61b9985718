"""Task files behind finished stages: their benchmarks are known again from the records, whatever became of the file.

Two task files may bear one name. Their stages have keys of their own, but their results would share a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..evals.tasks.files.opening import add_definition
from ..evals.tasks.files.schema import TaskFile
from ..foundation.errors import UserError
from ..foundation.files import read_json
from ..records.files import read_records
from .graph import Plan
from .store.files import RECORD

METRICS = "metrics.json"
"""What ``bench eval --out`` writes beside its samples."""


def know_task_of(folder: Path) -> None:
    """Make the task files' benchmarks known that a stage, or ``bench eval``, was run with; does nothing for others.

    Where the data are gone the benchmarks stay unknown, and who asks for one is refused by name.

    Args:
        folder: with the record of a stage, or of ``bench eval``.
    """
    plain = _read_record(folder)
    for definition in (plain.get("runtime", {}).get("task_file"), *plain.get("task_files", ())):
        if definition:
            with suppress(UserError, OSError, ValueError):
                add_definition(definition)


def _read_record(folder: Path) -> Mapping[str, Any]:
    for name in (RECORD, METRICS):
        with suppress(UserError, OSError, ValueError):
            plain = read_json(folder / name)
            return plain if isinstance(plain, dict) else {}
    return {}


def check_results_folder(plan: Plan) -> str:
    """Return a note where the results of an earlier version of the same task file are going to be replaced, or nothing.

    A task file counts as the earlier one where its training data lie at the same place, or are the same, or where an
    evaluation is the same: a copy elsewhere is no other task.

    Raises:
        UserError: the folder holds results of another task of that name.
    """
    folder = plan.config.execution.folder / plan.name
    if plan.task_file is None or not (folder / "results.csv").is_file():
        return ""
    earlier = read_records(folder)
    keys = [str(key) for key in earlier[earlier.task == plan.config.task].stage_key.unique()]
    definition = next(filter(None, map(_definition, (plan.store.path(key) for key in keys))), None)
    if definition is None or definition == plan.task_file or set(keys) & set(plan.stages):
        return ""
    before, now = (TaskFile.model_validate_json(text) for text in (definition, plan.task_file))
    if before.train != now.train and plan.training_sets[now.name].identity.sha256 not in _training_hashes(plan):
        raise UserError(
            f"{folder} holds results of another task file with the name '{now.name}', of the data {before.train.data}; "
            f"give this one another name in its file, or its results another folder with --name {plan.name}-2"
        )
    return "the task file has changed since this folder's results were written; they are replaced, finished stages stay"


def _definition(stage: Path) -> str | None:
    return _read_record(stage).get("runtime", {}).get("task_file")


def _training_hashes(plan: Plan) -> Iterator[str]:
    """Yield the hashes of all training data that finished stages have read."""
    for record in sorted(plan.store.root.glob(f"*/{RECORD}")):
        data = _read_record(record.parent).get("config", {}).get("data") or {}
        if data.get("task") == plan.config.task:
            yield str(data.get("sha256"))
