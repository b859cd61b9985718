"""The commands that list what there is: methods, models, tasks, benchmarks."""

from __future__ import annotations

from typing import Annotated

import typer

from ..foundation.errors import UserError
from .output import print_rows


def methods(
    name: Annotated[str | None, typer.Argument(help="One method: all that is known of it, and its options.")] = None,
    policies: Annotated[bool, typer.Option("--policies", help="List rank policies instead.")] = False,
    recoveries: Annotated[
        bool, typer.Option("--recoveries", help="List what trains after compression instead.")
    ] = False,
) -> None:
    """List the compression methods, the rank policies or the recoveries; with a name, its options and its status."""
    from . import methods as texts

    if policies and recoveries:
        raise UserError("--policies and --recoveries list different things; name one of them")
    kind: texts.Kind = "policies" if policies else "recoveries" if recoveries else "methods"
    if name is not None:
        texts.show(name, kind)
    else:
        texts.list_all(kind)


def models() -> None:
    """List the model presets; folders and hub ids work too."""
    from ..models.presets import PRESETS

    rows = [
        (name, p.summary, p.revision[:12] or "shipped with the package", p.recipe, p.licence, p.gated)
        for name, p in PRESETS.items()
    ]
    print_rows("models", ["name", "what it is", "revision", "recipe", "licence", "access granted by"], rows)


def tasks() -> None:
    """List the tasks with their benchmarks and training sets."""
    from ..evals.tasks.base import all_tasks

    rows = [(t.name, t.summary, ", ".join(t.benchmarks), ", ".join(t.sources)) for t in all_tasks().values()]
    print_rows("tasks", ["name", "what it is", "benchmarks", "training sets (the hub's default first)"], rows)


def benchmarks() -> None:
    """List the benchmarks."""
    from ..evals.base import benchmarks as registry

    rows = [(row.name, row.summary, row.origin) for row in registry.listings()]
    print_rows("benchmarks", ["name", "what it measures", "from"], rows)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (methods, models, tasks, benchmarks):
        app.command()(command)
