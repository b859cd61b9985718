"""bench run: a sweep from finetuning to table and curves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..foundation.errors import UserError
from ..runners.config.sweep import SweepConfig
from .config_options import takes_config
from .interruption import resumable_work
from .output import console


@takes_config(SweepConfig)
def run(
    asked: dict[str, Any],
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the same names (see docs/cli.md); options here override it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    assume: Annotated[
        str | None, typer.Option(help="Plan for this machine instead, with --dry-run: h100:1, h100:8, rtx4090:1.")
    ] = None,
) -> None:
    """Run methods through finetune, compress, finetune, evaluate; end with a table and curves.

    A complete stage is not run again: give the same command again to resume or to add a ratio or a method.
    """
    from ..runners.config import make_config, merge, read_yaml

    if assume is not None and not dry_run:
        raise UserError(
            f"--assume {assume} plans for a machine that is not here; add --dry-run, or leave it out to run"
        )
    checked = make_config(merge(read_yaml(config) if config else {}, asked))
    if dry_run:
        from ..runners.dry_run import print_plan

        print_plan(checked, console(), assume)
        return
    from ..results.sweep import run_sweep

    with resumable_work():
        run_sweep(checked, console())


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(run)
