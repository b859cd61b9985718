"""The command that puts a run on a page: report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Data
from .output import console


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or its results.csv or .parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for report.html and report.md. \\[default: the run's]")
    ] = None,
    data: Data = None,
) -> None:
    """Write a run as one page: question, findings, numbers, costs, ranks, spectra, failures, provenance."""
    from ..results.report.write import write_report

    for path in write_report(run, out, data):
        console().print(str(path), soft_wrap=True, highlight=False)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(report)
