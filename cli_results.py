"""The commands about stored results: table, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .cli_output import console
from .foundation.errors import UserError, unknown

Results = Annotated[Path, typer.Argument(help="Folder of a run, or its results.csv or .parquet.")]


def table(
    run: Results,
    format: Annotated[str, typer.Option(help="terminal, markdown, csv or latex.")] = "terminal",
    all_metrics: Annotated[bool, typer.Option("--all-metrics", help="Not only each benchmark's headline.")] = False,
) -> None:
    """Show the results of a run as a table."""
    formats = ["terminal", "markdown", "csv", "latex"]
    if format not in formats:
        raise unknown("format", format, formats)
    from .results import tables
    from .results.records import read_records

    frame = read_records(run)
    if format == "terminal":
        tables.render_terminal(frame, console(), headline=not all_metrics)
    else:
        sys.stdout.write(getattr(tables, f"to_{format}")(frame, headline=not all_metrics))


def plot(
    run: Results,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.  [default: the run's]")] = None,
) -> None:
    """Draw each benchmark's metric over the ratio, as PNG and SVG."""
    from .results.curves import draw_curves
    from .results.records import read_records

    folder = out or (run if run.is_dir() else run.parent)
    paths = draw_curves(read_records(run), folder)
    if not paths:
        raise UserError(f"{run} has no compressed model to draw; run bench run with at least one method first")
    for path in paths:
        console().print(str(path), soft_wrap=True, highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (table, plot):
        app.command()(command)
