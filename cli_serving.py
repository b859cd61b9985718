"""The commands about serving: export, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_output import console
from .foundation.errors import UserError

CHECKPOINT = "Folder of a checkpoint, or RUN:LABEL@RATIO such as runs/tiny-toy-math:svd@3."
Seed = Annotated[int | None, typer.Option(help="Which seed of a run, where there are several.")]


def export(
    folder: Annotated[str, typer.Argument(help=CHECKPOINT)],
    out: Annotated[Path, typer.Option(help="New folder.")],
    dense: Annotated[bool, typer.Option("--dense", help="Multiply the factors out (the one form there is).")] = False,
    dtype: Annotated[str, typer.Option(help="Of the weights written; auto is the checkpoint's own.")] = "auto",
    seed: Seed = None,
) -> None:
    """Write a factorised checkpoint in a form that loads without this package."""
    if not dense:
        raise UserError("say which form: bench export FOLDER --dense --out DIR multiplies the factors out")
    from .models.export import export_dense
    from .runners.cells import checkpoint_folder

    size = export_dense(checkpoint_folder(folder, seed), out, dtype)
    console().print(
        f"{size.parameters:,} parameters, {size.bytes:,} bytes; loads without lowrank-bench\ncheckpoint  {out}",
        highlight=False,
        soft_wrap=True,
    )


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (export,):
        app.command()(command)
