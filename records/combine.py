"""Several runs as one frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..foundation.errors import UserError
from .files import read_records, to_frame, to_records
from .schema import COLUMNS, KEY_COLUMNS, TIMING_COLUMNS, Record

if TYPE_CHECKING:
    import pandas as pd

_RESULTS = tuple(column for column in COLUMNS if column not in TIMING_COLUMNS)


def read_runs(paths: Sequence[Path]) -> pd.DataFrame:
    """Read the records of one run, or of several as one frame.

    A record that two runs share is taken once. Runs of one name that hold different records of a cell are kept apart
    by their paths: their sweep becomes ``NAME (PATH)``.

    Raises:
        UserError: a run cannot be read, or is named twice.
    """
    if len(paths) == 1:
        return read_records(paths[0])
    if twice := next((path for path in paths if list(paths).count(path) > 1), None):
        raise UserError(f"{twice} is named twice; name each run once")
    runs = [to_records(read_records(path)) for path in paths]
    names = [{record.sweep for record in run} for run in runs]
    records: dict[tuple[object, ...], Record] = {}
    for index, (path, run) in enumerate(zip(paths, runs, strict=True)):
        earlier_names = set().union(*names[:index])
        differs = any(_result(records[_key(record)]) != _result(record) for record in run if _key(record) in records)
        for record in run:
            if differs and record.sweep in earlier_names:
                record = record.model_copy(update={"sweep": f"{record.sweep} ({path})"})
            records.setdefault(_key(record), record)
    return to_frame(records.values())


def _key(record: Record) -> tuple[object, ...]:
    return tuple(getattr(record, column) for column in KEY_COLUMNS)


def _result(record: Record) -> tuple[object, ...]:
    return tuple(getattr(record, column) for column in _RESULTS)
