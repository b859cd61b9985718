"""The commands that guard a method: check, baseline."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..foundation.errors import UserError
from .output import console

Run = Annotated[Path, typer.Argument(help="Folder of a run, or its results.csv or .parquet.")]
Baseline = Annotated[Path, typer.Option(help="CSV file with the baseline's records.")]
Where = Annotated[
    list[str] | None,
    typer.Option(help="Only these records, such as method=svd,bs or 'ratio_target>=2'; may be given again."),
]
AllMetrics = Annotated[bool, typer.Option("--all-metrics", help="Not only each benchmark's headline.")]


def check(
    run: Run,
    baseline: Baseline,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.")] = None,
    sigmas: Annotated[float, typer.Option(help="Standard errors from which a fall is an alarm.")] = 3.0,
    min_drop: Annotated[float, typer.Option(help="Points of recovery (percent) below which none is.")] = 2.0,
    where: Where = None,
) -> None:
    """Compare a run's recovery (compressed / uncompressed) with a stored baseline; exit 1 where it fell."""
    from ..foundation.files import write_atomic
    from ..records.files import read_records
    from ..records.filters import filter_frame
    from ..results.regression import baseline as baselines
    from ..results.regression.compare import Tolerance, check_run
    from ..results.regression.junit import junit_xml
    from ..results.regression.recovery import with_references
    from ..results.regression.show import print_check

    if junit is not None and junit.suffix != ".xml":
        raise UserError(f"--junit {junit} does not end in .xml; name the file for JUnit XML, such as junit.xml")
    tolerance = Tolerance(sigmas, min_drop / 100)
    stored, current = baselines.read_baseline(baseline), read_records(run)
    if where:
        stored, current = (with_references(frame, filter_frame(frame, where)) for frame in (stored, current))
    result = check_run(current, stored, tolerance)
    screen = console()
    for side, frame in (("baseline", stored), ("run     ", current)):
        screen.print(f"{side}  {', '.join(baselines.provenance(frame))}", soft_wrap=True, highlight=False, markup=False)
    print_check(result, screen)
    if junit:
        write_atomic(junit, junit_xml(result, str(run)))
    if result.failed:
        sys.exit(1)


baseline_app = typer.Typer(
    no_args_is_help=True, help="Make, change and show the baseline that bench check compares with."
)


@baseline_app.command()
def update(run: Run, baseline: Baseline, where: Where = None, all_metrics: AllMetrics = False) -> None:
    """Make a run the baseline of its models and tasks, and say what changed."""
    from ..records.files import read_records
    from ..records.filters import filter_frame
    from ..results.regression.baseline import update_baseline
    from ..results.regression.recovery import with_references

    whole = read_records(run)
    if not all_metrics:
        whole = filter_frame(whole, ["headline=true"])
    frame = with_references(whole, filter_frame(whole, where)) if where else whole
    done = update_baseline(frame, baseline)
    screen = console()
    for change in done.changes or ("nothing changed",):
        screen.print(change, soft_wrap=True, highlight=False, markup=False)
    if frame["seed"].nunique() == 1:
        screen.print(
            "one seed: differences between seeds stay unknown; make baselines with --seeds 1,2,3", highlight=False
        )
    screen.print(f"baseline  {baseline} ({len(done.records)} records)", soft_wrap=True, highlight=False, markup=False)


@baseline_app.command()
def show(baseline: Annotated[Path, typer.Argument(help="CSV file with the baseline's records.")]) -> None:
    """Show the recoveries that a baseline holds, and who measured them."""
    from ..results.regression.baseline import provenance, read_baseline
    from ..results.regression.recovery import estimates
    from ..results.regression.show import print_baseline

    frame, screen = read_baseline(baseline), console()
    screen.print("\n".join(provenance(frame)), soft_wrap=True, highlight=False, markup=False)
    print_baseline(estimates(frame), screen)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(check)
    app.add_typer(baseline_app, name="baseline")
