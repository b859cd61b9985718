"""The commands about stored results: table, plot."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..foundation.errors import UserError, unknown
from ..records.checksums import check_not_results
from .output import console, print_tables, split_list

if TYPE_CHECKING:
    from ..results.tables.table import Table

Results = Annotated[Path, typer.Argument(help="Folder of a run, or its results.csv or .parquet.")]


FORMATS = ("terminal", "markdown", "csv", "latex")
ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}


def table(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or their results.csv or .parquet.", metavar="RUN...")
    ] = None,
    format: Annotated[str | None, typer.Option(help="terminal, markdown, csv or latex. \\[default: terminal]")] = None,
    all_metrics: Annotated[bool, typer.Option("--all-metrics", help="Not only each benchmark's headline.")] = False,
    overview: Annotated[
        bool,
        typer.Option("--overview", help="One table over 3 or more benchmarks, with the change against uncompressed."),
    ] = False,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only these records: method=svd,bs or 'ratio_target>=2'; may be given again."),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="Columns of the records that make the lines. \\[default: label]")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of the records that stand side by side. \\[default: ratio_target]")
    ] = None,
    value: Annotated[str | None, typer.Option(help="Column of the records that is shown. \\[default: value]")] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file: .md, .csv or .tex.")] = None,
    dictionary: Annotated[
        bool, typer.Option("--dictionary", help="Print what every column of the records means, and stop.")
    ] = False,
) -> None:
    """Show the results of one run or several as a table; with --rows, --columns or --value, over any columns."""
    if dictionary:
        from ..records.dictionary import data_dictionary

        sys.stdout.write(data_dictionary())
        return
    if not runs:
        raise UserError("name a run, such as bench table runs/tiny-toy-math")
    chosen = _format(format, out)
    if out is not None:
        check_not_results(out)
    from ..records.combine import read_runs
    from ..records.filters import filter_frame

    frame = filter_frame(read_runs(runs), where or [])
    layout = {"rows": rows, "columns": columns, "value": value}
    given = {name: text for name, text in layout.items() if text is not None}
    if overview and given:
        raise UserError(f"--overview has its own layout; leave out --{next(iter(given))}")
    if overview:
        tables = _overview(frame)
    elif given:
        tables = _cross(frame, given, chosen, headline=not all_metrics)
    else:
        tables = _tables(frame, chosen, headline=not all_metrics)
    if out is None:
        print_tables(tables, chosen)
        return
    from ..foundation.files import write_atomic
    from ..results.tables.writers import WRITERS

    write_atomic(out, WRITERS[chosen](tables))
    console().print(str(out), soft_wrap=True, highlight=False, markup=False)


def _format(format: str | None, out: Path | None) -> str:
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if out is None:
        return format or "terminal"
    by_ending = ENDINGS.get(out.suffix)
    if by_ending is None:
        raise UserError(f"{out} has to end in {', '.join(ENDINGS)}, which says the format")
    if format not in (None, by_ending):
        raise UserError(f"{out} ends in {out.suffix}, which is {by_ending}, not {format}; leave out --format")
    return by_ending


def _tables(frame: Any, format: str, headline: bool) -> Sequence[Table]:
    from ..results.tables.by_ratio import EXACT_WIDTH, by_ratio, by_ratio_data

    if format == "csv":
        return [by_ratio_data(frame, headline)]
    return by_ratio(frame, headline, exact=format != "terminal" or console().width >= EXACT_WIDTH)


def _cross(frame: Any, given: dict[str, str], format: str, headline: bool) -> Sequence[Table]:
    from ..results.tables.cross import Layout, cross, cross_data, cross_tables

    lists = {name: tuple(split_list(given[name]) or ()) for name in ("rows", "columns") if name in given}
    value = {"value": given["value"]} if "value" in given else {}
    crossed = cross(frame, Layout(**lists, **value), headline)  # type: ignore[arg-type]
    return [cross_data(crossed)] if format == "csv" else cross_tables(crossed)


def _overview(frame: Any) -> Sequence[Table]:
    from ..results.tables.overview import MIN_BENCHMARKS, overviews

    tables = overviews(frame)
    if not tables:
        raise UserError(f"an overview needs {MIN_BENCHMARKS} benchmarks or more; leave out --overview")
    return tables


def plot(
    run: Results,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures. \\[default: the run's]")] = None,
    x: Annotated[
        str,
        typer.Option(
            help="ratio, bytes, runtime_bytes, tokens_per_second, or tokens of training with several budgets."
        ),
    ] = "ratio",
    speed: Annotated[
        Path | None, typer.Option(help="Where bench speed put its records. \\[default: speed/ beside the run]")
    ] = None,
) -> None:
    """Draw each benchmark's metric over ratio, weights' bytes, measured tokens per second or training tokens."""
    from ..records.files import read_records
    from ..results.plots.axes import AXES
    from ..results.plots.budgets import TOKENS, draw_budgets
    from ..results.plots.curves import draw_curves
    from ..results.speed.joining import speed_variants, with_speed

    if x not in (*AXES, TOKENS):
        raise unknown("x-axis", x, [*AXES, TOKENS])
    frame = read_records(run)
    base = run if run.is_dir() else run.parent
    folder, paths = out or base, []
    if x == "tokens_per_second":
        measured = speed or base.resolve().parent / "speed"
        if not measured.exists():
            raise UserError(f"there are no measured speeds in {measured}; run bench speed {run}:LABEL@RATIO first")
        speeds = read_records(measured)
        for variant in speed_variants(speeds):
            paths += draw_curves(with_speed(frame, speeds, variant), folder, x=x, condition=variant)
    elif x == TOKENS:
        paths = draw_budgets(frame, folder)
        if not paths:
            raise UserError(
                f"{run} has no models with different training after compression; run bench run with several, such as "
                "--recover-steps 100,200,400"
            )
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
