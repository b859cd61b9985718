"""The results of a sweep in experiment trackers: a run for each cell, and one with the table of all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..foundation.plain import plain_number
from ..runners.tracking.names import Tracking
from ..runners.tracking.trackers import trackers
from ..runners.tracking.training import guarded

if TYPE_CHECKING:
    import pandas as pd

_CELL = ["label", "ratio_target", "stage", "steps_budget", "seed"]
_FACTS = ["sweep", "model", "model_sha256", "task", "method", "options", *_CELL]
_FACTS += ["engine", "dtype", "device", "git_commit"]
_SIZES = ["ratio", "ratio_matrices", "params", "bytes"]
_COSTS = [f"{kind}_{stage}" for kind in ("seconds", "steps", "tokens") for stage in ("finetune", "compress", "recover")]
_TABLE = [*_CELL, "params", "variant", "metric", "value", "low", "high", "n"]


def report_results(tracking: Tracking | None, frame: pd.DataFrame, csv: Path) -> None:
    """Write every cell and the table of headline metrics to the trackers of a sweep; one that fails is left out.

    Args:
        tracking: where to; None writes nothing.
        frame: records of the sweep.
        csv: the file that holds them.
    """
    headline = frame[frame.headline][_TABLE]
    several = len(set(frame.steps_budget) - {0}) > 1
    for tracker in trackers(tracking):
        for (label, ratio, stage, budget, seed), rows in frame.groupby(_CELL, sort=False):
            steps = f"/{budget}" if several and budget else ""
            title = f"cell {label}@{ratio:g}{steps}, {stage}, seed {seed}"
            if not guarded(tracker, title, partial(tracker.log_cell, title, _facts(rows), _values(rows))):
                break
        else:
            table = partial(tracker.log_table, "results", _TABLE, headline.values.tolist(), csv)
            guarded(tracker, "results", table)


def _facts(rows: pd.DataFrame) -> dict[str, Any]:
    """Return what a cell is; of its evaluations what all of them have in common."""
    first = rows.iloc[0]
    return {name: plain_number(first[name]) for name in _FACTS if rows[name].nunique(dropna=False) == 1}


def _values(rows: pd.DataFrame) -> dict[str, float]:
    """Return the numbers of a cell: sizes, costs, and each metric with its interval."""
    first = rows.iloc[0]
    values = {name: float(first[name]) for name in [*_SIZES, *_COSTS]}
    values["peak_memory_bytes"] = float(rows.peak_memory_bytes.max())
    for row in rows.to_dict("records"):
        name = f"{row['variant']}/{row['metric']}"
        if row["scorer"] and not row["headline"]:  # the headline has the plain name
            name += f"/{row['scorer']}"
        values[name] = float(row["value"])
        values |= {f"{name}/{bound}": float(row[bound]) for bound in ("low", "high", "n")}
    return {name: value for name, value in values.items() if value == value}
