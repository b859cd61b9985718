"""The baseline file: whole records, as results.csv has them, so that every table and curve takes it too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...foundation.errors import UserError
from ...foundation.files import write_atomic
from ...records.checksums import check_not_results
from ...records.files import COLUMNS, TIMING_COLUMNS, Record, csv_text, read_records, to_records
from .recovery import CellName, Estimate, estimates, has_budgets

if TYPE_CHECKING:
    import pandas as pd

_FREE = (*TIMING_COLUMNS, "sweep", "device", "threads", "versions", "git_commit", "stage_key")
"""What a stored record keeps when a new run gave the same result, so that a file changes only where results do."""


@dataclass(frozen=True)
class Update:
    """What an update did to a baseline, one sentence each.

    Attributes:
        records: what the file holds now.
        changes: cells added, dropped and moved.
    """

    records: tuple[Record, ...]
    changes: tuple[str, ...]


def read_baseline(path: Path) -> pd.DataFrame:
    """Read and validate a baseline.

    Raises:
        UserError: the file is missing, no file of records, or has no compressed cell; names the file and what to do.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with 'bench baseline update RUN --baseline {path}'")
    frame = read_records(path)
    if not (frame["method"] != "none").any():
        raise UserError(f"{path} has no compressed model, so there is nothing to compare; make it again from a run")
    return frame


def update_baseline(run: pd.DataFrame, path: Path) -> Update:
    """Make a run the baseline of its models and tasks; other models and tasks in the file stay.

    A cell is divided by the uncompressed model of its own run, so a run replaces all cells of its models and tasks.
    Records whose results are equal keep their old provenance; equal results give equal bytes.

    Args:
        run: records.
        path: a .csv file, made if missing, replaced atomically.

    Raises:
        UserError: the run has no compressed model or no recovery, or the file there is not a baseline.
    """
    if path.suffix != ".csv":
        raise UserError(f"{path} does not end in .csv; a baseline is a CSV file of records, such as baseline.csv")
    check_not_results(path)
    cells = estimates(run)
    compressed = [cell for name, cell in cells.items() if not name.uncompressed]
    if all(cell.undefined for cell in compressed):
        why = next((cell.undefined for cell in compressed), "")
        raise UserError(
            "the run has no compressed model with an uncompressed one to compare it with; a baseline needs both"
            + (f" ({why})" if why else "")
        )
    old = read_records(path) if path.exists() else None
    updated = set(_models_and_tasks(run))
    untouched: list[Record] = []
    known: dict[tuple[object, ...], Record] = {}
    if old is not None:
        for record in to_records(old):
            if (record.model, record.task) in updated:
                known[_result(record)] = record
            else:
                untouched.append(record)
    new = [known.get(_result(record), record) for record in to_records(run)]
    records = (*untouched, *new)
    write_atomic(path, csv_text(records))
    if old is None:
        return Update(records, tuple(_changes({}, cells)))
    same = old[[pair in updated for pair in _models_and_tasks(old)]]
    # One decision for both sides: else the same cell has two names and is listed as dropped and as added.
    budgets = has_budgets(same) or has_budgets(run)
    return Update(records, tuple(_changes(estimates(same, budgets), estimates(run, budgets))))


def _models_and_tasks(frame: pd.DataFrame) -> Iterable[tuple[str, str]]:
    return zip(frame["model"], frame["task"], strict=True)


def _result(record: Record) -> tuple[object, ...]:
    return tuple(getattr(record, column) for column in COLUMNS if column not in _FREE)


def _changes(before: dict[CellName, Estimate], after: dict[CellName, Estimate]) -> list[str]:
    changes = []
    for name in [*before, *(name for name in after if name not in before)]:
        cell = f"{name.row} on {name.measure}"
        if name not in after:
            changes.append(f"dropped  {cell}")
        elif name not in before:
            changes.append(f"added    {cell}: {_shown(name, after[name])}")
        elif (before[name].values, before[name].seeds, before[name].conditions, before[name].ratio) != (
            *(after[name].values, after[name].seeds, after[name].conditions, after[name].ratio),
        ):
            changes.append(f"changed  {cell}: {_shown(name, before[name])} → {_shown(name, after[name])}")
    return changes


def _shown(name: CellName, estimate: Estimate) -> str:
    seeds = f"seeds {', '.join(map(str, estimate.seeds))}" if len(estimate.seeds) > 1 else f"seed {estimate.seeds[0]}"
    if name.uncompressed:
        return f"{name.metric} {estimate.metric:.4g} ({seeds})"
    recovery = estimate.undefined or f"recovery {100 * estimate.mean:.1f} %"
    return f"{recovery} at {estimate.ratio:.3f}× ({seeds})"


def provenance(frame: pd.DataFrame) -> list[str]:
    """Return who measured a frame: seeds, commits, processors, days."""
    columns: Sequence[tuple[str, list[str]]] = (
        ("seeds", [str(seed) for seed in sorted(set(frame["seed"]))]),
        ("commit", sorted({commit[:12] or "unknown" for commit in frame["git_commit"]})),
        ("device", sorted(set(frame["device"]))),
        ("measured", sorted({time[:10] for time in frame["evaluated_at"]})),
    )
    return [f"{name} {', '.join(values)}" for name, values in columns]
