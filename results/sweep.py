"""The whole line: run a sweep, write its records, show tables, draw curves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from ..records.files import to_frame
from ..runners.config import SweepConfig
from ..runners.sweep import execute
from .plots.curves import draw_curves
from .tables.by_ratio import EXACT_WIDTH, by_ratio
from .tables.overview import overviews
from .tables.terminal import render


@dataclass(frozen=True)
class SweepResult:
    """Where a finished sweep lies: its folder, the files written to it, and how many stages had to run."""

    folder: Path
    csv: Path
    curves: list[Path]
    stages_run: int
    files: tuple[Path, ...] = ()


def run_sweep(config: SweepConfig, console: Console | None = None) -> SweepResult:
    """Run a sweep, or what is missing of it, and write its results.

    Args:
        config: what to run.
        console: where progress and tables go; None is silent.

    Raises:
        UserError: bad input, before anything is written; or a stage that cannot go on; or evaluations that failed, when
            everything else is done and written.
    """
    out = console or Console(quiet=True)
    done = execute(config, out)
    files = done.write_records()
    csv, frame = files[0], to_frame(done.records)
    curves = draw_curves(frame, csv.parent)
    result = SweepResult(csv.parent, csv, curves, done.stages_run, (*files, *curves))
    if done.shared:
        done.shared.send_results(result.folder, result.files)
    render([*by_ratio(frame, exact=out.width >= EXACT_WIDTH), *overviews(frame)], out)
    out.print(f"results  {csv}", soft_wrap=True, highlight=False)
    for path in curves:
        if path.suffix == ".png":
            out.print(f"curve    {path}", soft_wrap=True, highlight=False)
    done.raise_failures()
    return result
