"""The command about what bases mean and what became of them: inspect."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from ..foundation.errors import UserError, unknown
from .options import Revision
from .output import console, print_name_note, print_tables
from .serving import Storage

if TYPE_CHECKING:
    from ..results.inspection.gather import Reading


def inspect(
    model: Annotated[
        str, typer.Argument(help="Preset, folder (dense or factorised), hub id, or RUN:LABEL@RATIO, a cell of a run.")
    ],
    layer: Annotated[int | None, typer.Option(min=0, help="Counted from 0.")] = None,
    matrix: Annotated[
        str | None, typer.Option(help="q, k, v, o, ov (o times v of one head), gate, up, down, or a module's name.")
    ] = None,
    head: Annotated[
        int | None,
        typer.Option(min=0, help="Counted from 0; for k and v of the key/value heads. \\[default: all heads]"),
    ] = None,
    bases: Annotated[
        int | None, typer.Option(min=1, help="How many, the strongest first. \\[default: 10; with --changes 5 of each]")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Tokens at each end of a basis.")] = 10,
    side: Annotated[
        str | None,
        typer.Option(help="Singular vectors: left (written), right (read). \\[default: left where tokens can be read]"),
    ] = None,
    lens: Annotated[
        str | None,
        typer.Option(help="Tokens by the output head or the input embedding. \\[default: output for left, else input]"),
    ] = None,
    fold_norm: Annotated[bool, typer.Option(help="Take the norms' weights into account.")] = True,
    changes: Annotated[
        bool, typer.Option("--changes", help="Of a compressed cell: which bases were kept, grew or died, and a figure.")
    ] = False,
    format: Annotated[str, typer.Option(help="terminal, markdown, csv, json or latex.")] = "terminal",
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figure of --changes. \\[default: the run's, on a terminal only]")
    ] = None,
    revision: Revision = None,
    seed: Annotated[int | None, typer.Option(help="Which seed of a cell, where there are several.")] = None,
    storage: Storage = None,
) -> None:
    """Show the tokens behind the bases of a matrix, or what a compression did to all bases."""
    from ..results.inspection.bases import FORMATS

    for kind, word, allowed in (
        ("format", format, FORMATS),
        ("side", side, ("left", "right")),
        ("lens", lens, ("output", "input")),
    ):
        if word is not None and word not in allowed:
            raise unknown(kind, word, allowed)
    if changes:
        for option, given in (("--head", head), ("--side", side), ("--revision", revision)):
            if given is not None:
                raise UserError(f"--changes is about whole matrices of a cell and takes no {option}; leave it out")
    elif matrix is None:
        raise UserError(
            "name the matrix whose bases to read, such as --layer 1 --matrix ov --head 0, or add --changes for all "
            "bases of a compressed cell"
        )
    elif out is not None:
        raise UserError("--out is the folder for the figure of --changes; leave it out, or redirect the output")
    from ..results.inspection.gather import Reading, inspect_bases

    print_name_note(model, revision)
    reading = Reading(top, cast(Literal["output", "input"] | None, lens), fold_norm)
    if changes:
        _changes(model, layer, matrix, bases or 5, reading, seed, storage, format, out)
        return
    assert matrix is not None
    from ..results.inspection import bases as views

    chosen = cast(Literal["left", "right"] | None, side)
    view = inspect_bases(model, matrix, layer, head, chosen, bases or 10, reading, revision, seed, storage)
    if format == "json":
        sys.stdout.write(views.bases_json(view))
    else:
        print_tables([views.bases_data(view) if format == "csv" else views.bases_table(view)], format)


def _changes(
    name: str,
    layer: int | None,
    matrix: str | None,
    count: int,
    reading: Reading,
    seed: int | None,
    storage: str | None,
    format: str,
    out: Path | None,
) -> None:
    from ..results.cells import is_cell
    from ..results.inspection import changes as views
    from ..results.inspection.change_figure import draw_changes
    from ..results.inspection.gather import inspect_changes

    if not is_cell(name):
        raise UserError(
            f"'{name}' is no cell of a run; --changes needs RUN:LABEL@RATIO such as runs/tiny-toy-math:bs@3"
        )
    view = inspect_changes(name, layer, matrix, count, reading, seed, storage)
    paths = []
    if out is not None or format == "terminal":
        run = Path(name.rpartition(":")[0])
        paths = draw_changes(view, out or (run if run.is_dir() else run.parent))
    if format == "json":
        sys.stdout.write(views.changes_json(view))
        return
    print_tables([views.changes_data(view)] if format == "csv" else views.changes_tables(view), format)
    for path in paths if format == "terminal" else ():
        console().print(str(path), soft_wrap=True, highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(inspect)
