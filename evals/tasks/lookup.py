"""What was typed as a benchmark or a task: names, and task files."""

from __future__ import annotations

from collections.abc import Iterable

from ...foundation.errors import unknown
from ..base import benchmarks
from .base import all_tasks
from .files.opening import is_task_file, open_task


def benchmark_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return registered benchmark names for what was typed: a task, or a task file, means its benchmarks, ``_`` ``-``.

    Raises:
        UserError: a name that is neither; with the nearest one.
    """
    chosen: list[str] = []
    known: set[str] = set()
    for name in names:
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
