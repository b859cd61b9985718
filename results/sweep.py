"""The whole line: run a sweep, write its records, show tables, draw curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..records.files import to_frame
from ..runners.config import SweepConfig
from ..runners.keywords import config_of
from ..runners.sweep import execute
from .plots.budgets import draw_budgets
from .plots.curves import draw_curves
from .tables.by_ratio import EXACT_WIDTH, by_ratio
from .tables.overview import overviews
from .tables.terminal import render
from .tracked import report_results

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class SweepResult:
    """What a finished sweep left.

    Attributes:
        folder: of its results.
        records: all of them, one row a number; the same frame as `read_records` makes of the folder.
        csv: the file of the records.
        curves: pictures.
        stages_run: how many stages had to run.
        files: all that was written to the folder.
    """

    folder: Path
    records: pd.DataFrame
    csv: Path
    curves: list[Path]
    stages_run: int
    files: tuple[Path, ...] = ()


def run_sweep(
    config: SweepConfig | Path | str | None = None, console: Console | None = None, **options: Any
) -> SweepResult:
    """Run a sweep, or what is missing of it, and write its results.

    Nothing is printed unless a console is given. Workers are processes: in a script, call it under
    ``if __name__ == "__main__":``, as multiprocessing asks for.

    Args:
        config: what to run, or a YAML file that says so; options override it.
        console: where progress and tables go, such as ``rich.console.Console()``; None is silent.
        options: the options of ``bench run`` with ``_`` for ``-`` (``methods="svd,bs"``, ``ratios=[2, 4]``,
            ``recover_steps=80``), or fields of `SweepConfig`.

    Raises:
        UserError: bad input, before anything is written; or a stage that cannot go on; or evaluations that failed, when
            everything else is done and written.
    """
    out = console or Console(quiet=True)
    done = execute(config_of(config, options), out)
    files = done.write_records()
    csv, frame = files[0], to_frame(done.records)
    curves = [*draw_curves(frame, csv.parent), *draw_budgets(frame, csv.parent)]
    result = SweepResult(csv.parent, frame, csv, curves, done.stages_run, (*files, *curves))
    if done.shared:
        done.shared.send_results(result.folder, result.files)
    render([*by_ratio(frame, exact=out.width >= EXACT_WIDTH), *overviews(frame)], out)
    out.print(f"results  {csv}", soft_wrap=True, highlight=False)
    for path in curves:
        if path.suffix == ".png":
            out.print(f"curve    {path}", soft_wrap=True, highlight=False)
    report_results(done.plan.tracking, frame, csv)
    done.raise_failures()
    return result
