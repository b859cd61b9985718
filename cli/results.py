"""The commands about stored results: table, plot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..foundation.errors import UserError, unknown
from .output import console

Results = Annotated[Path, typer.Argument(help="Folder of a run, or its results.csv or .parquet.")]


def table(
    run: Results,
    format: Annotated[str, typer.Option(help="terminal, markdown, csv or latex.")] = "terminal",
    all_metrics: Annotated[bool, typer.Option("--all-metrics", help="Not only each benchmark's headline.")] = False,
    overview: Annotated[
        bool, typer.Option("--overview", help="One table over all benchmarks, with the change against uncompressed.")
    ] = False,
) -> None:
    """Show the results of a run as a table."""
    formats = ["terminal", "markdown", "csv", "latex"]
    if format not in formats:
        raise unknown("format", format, formats)
    from ..results import tables
    from ..results.records import read_records

    frame = read_records(run)
    if overview:
        _overview(frame, format)
        return
    if format == "terminal":
        tables.render_terminal(frame, console(), headline=not all_metrics)
    else:
        sys.stdout.write(getattr(tables, f"to_{format}")(frame, headline=not all_metrics))


def _overview(frame: Any, format: str) -> None:
    from ..results import overview as views

    if not views.overviews(frame):
        raise UserError(f"an overview needs {views.MIN_BENCHMARKS} benchmarks or more; leave out --overview")
    if format == "terminal":
        views.render_overview(frame, console())
    elif format in ("markdown", "csv"):
        sys.stdout.write(getattr(views, f"overview_{format}")(frame))
    else:
        raise UserError(f"an overview cannot be written as {format}; use --format terminal, markdown or csv")


def plot(
    run: Results,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures.  [default: the run's]")] = None,
    x: Annotated[str, typer.Option(help="ratio, bytes or tokens_per_second.")] = "ratio",
    speed: Annotated[
        Path | None, typer.Option(help="Where bench speed put its records.  [default: speed/ beside the run]")
    ] = None,
) -> None:
    """Draw each benchmark's metric over the ratio, the weights' bytes or measured tokens per second."""
    from ..results.axes import AXES
    from ..results.curves import draw_curves
    from ..results.records import read_records
    from ..results.speed import speed_variants, with_speed

    if x not in AXES:
        raise unknown("x-axis", x, AXES)
    frame = read_records(run)
    base = run if run.is_dir() else run.parent
    folder, paths = out or base, []
    if x == "tokens_per_second":
        speeds = read_records(speed or base.resolve().parent / "speed")
        for variant in speed_variants(speeds):
            paths += draw_curves(with_speed(frame, speeds, variant), folder, x=x, condition=variant)
    else:
        paths = draw_curves(frame, folder, x=x)
    if not paths and x == "tokens_per_second":
        raise UserError(
            f"no compressed model of {run} has a measured speed; measure its cells first, such as bench speed "
            "runs/tiny-toy-math:svd@3"
        )
    if not paths:
        raise UserError(f"{run} has no compressed model to draw; run bench run with at least one method first")
    for path in paths:
        console().print(str(path), soft_wrap=True, highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (table, plot):
        app.command()(command)
