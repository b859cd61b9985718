"""What was typed as a benchmark or a task: names, task files, and names of lm-evaluation-harness's tasks."""

from __future__ import annotations

from collections.abc import Iterable

from ...foundation.errors import unknown
from ..base import benchmarks
from ..harness.names import is_harness_name, parse_name
from .base import all_tasks
from .files.opening import is_task_file, open_task


def benchmark_names(names: Iterable[str] | str) -> tuple[str, ...]:
    """Return benchmark names for what was typed: a task, or a task file, means its benchmarks, ``_`` means ``-``.

    Args:
        names: one text may have several with commas.

    Raises:
        UserError: a name that is none of these; with the nearest one.
    """
    chosen: list[str] = []
    known: set[str] = set()
    for name in [part.strip() for part in names.split(",")] if isinstance(names, str) else names:
        if is_harness_name(name):
            chosen.append(str(parse_name(name)))
            continue
        if is_task_file(name):
            chosen += open_task(name).benchmarks
            continue
        known, plain, tasks = known or set(benchmarks.names()), name.replace("_", "-"), all_tasks()
        if plain in known:
            chosen.append(plain)
        elif plain in tasks:
            chosen += tasks[plain].benchmarks
        else:
            raise unknown("benchmark", name, known)
    return tuple(dict.fromkeys(chosen))
