"""``--where``: choosing records by their columns, without evaluating anything."""

from __future__ import annotations

import csv
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..foundation.errors import UserError, did_you_mean, unknown
from .schema import COLUMNS, Record

if TYPE_CHECKING:
    import pandas as pd

_ORDERED: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_CONDITION = re.compile(r"\s*([A-Za-z_]\w*)\s*(!=|>=|<=|=|>|<)\s*(.*?)\s*", re.DOTALL)
_BOOLS = {"true": True, "false": False}
_SHOWN = 12


@dataclass(frozen=True)
class Condition:
    """One ``--where``: a column, a comparison, and the values on its right."""

    column: str
    sign: str
    values: tuple[Any, ...]


def parse_condition(text: str) -> Condition:
    """Read ``method=svd,bs``, ``label!="bs, top"``, ``ratio_target>=2`` or ``headline=true``.

    Several values with commas are alternatives (after ``!=``, all are left out); a value with a comma goes into double
    quotes. Numbers may be compared by size, and so may the time ``evaluated_at``, a day being its first second in UTC.

    Raises:
        UserError: this is not such a condition, the column is unknown, or a value is not of the column's type.
    """
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise UserError(f"'{text}' is not a condition; write COLUMN=VALUE, such as method=svd,bs or ratio_target>=2")
    column, sign, right = match.groups()
    if column not in COLUMNS:
        raise unknown("column", column, COLUMNS)
    values = tuple(_value(column, part) for part in _parts(text, right))
    if sign in _ORDERED and (len(values) != 1 or isinstance(values[0], bool | str)) and column != "evaluated_at":
        raise UserError(f"'{text}': {sign} needs a column of numbers and one number, such as ratio_target>=2")
    return Condition(column, sign, values)


def filter_frame(frame: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the records that meet every condition.

    Args:
        frame: records as `records.read_records` returns them.
        conditions: as `parse_condition` reads them.

    Raises:
        UserError: a condition cannot be read, names a value that no record has, or nothing is left.
    """
    if frame.empty and conditions:
        raise UserError("there are no records to choose from; name a run that has evaluated at least one model")
    whole = frame
    for text in conditions:
        condition = parse_condition(text)
        column = frame[condition.column]
        if condition.sign in _ORDERED:
            frame = frame[_ORDERED[condition.sign](column, condition.values[0])]
        else:
            _check_known(whole, condition)
            chosen = column.isin(condition.values)
            frame = frame[chosen if condition.sign == "=" else ~chosen]
        if frame.empty:
            raise UserError(f"no record is left after '{text}'; loosen it or leave it out")
    return frame


def _parts(text: str, right: str) -> list[str]:
    try:
        (parts,) = csv.reader([right], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        parts = []
    if not parts:
        raise UserError(f"'{text}' has no readable value; write values with commas, in double quotes if they hold one")
    return [part.strip() for part in parts]


def _value(column: str, text: str) -> Any:
    kind = Record.model_fields[column].annotation
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise UserError(f"{column} is true or false, not '{text}'")
        return _BOOLS[text.lower()]
    if column == "evaluated_at":
        return _time(text)
    if kind not in (int, float):
        return text
    try:
        number = kind(text.removesuffix("x") if column.startswith("ratio") else text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        whole = "whole " if kind is int else ""
        raise UserError(f"{column} is a {whole}number, and '{text}' is not")
    return number


def _time(text: str) -> str:
    """Return a time as records have it."""
    try:
        time = datetime.fromisoformat(text)
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):  # the latter of the first and the last day that there is
        raise UserError(
            f"evaluated_at is a time such as 2026-01-31 or 2026-01-31T12:00:00+00:00, and '{text}' is not"
        ) from None
    return time.isoformat(timespec="seconds")


def _written(value: object) -> str:
    """Return a value as one would type it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_known(frame: pd.DataFrame, condition: Condition) -> None:
    known = list(dict.fromkeys(frame[condition.column].tolist()))
    for value in condition.values:
        if value not in known:
            texts = [_written(v) for v in known]
            hint = did_you_mean(value, texts) if isinstance(value, str) else ""
            more = ", …" if len(texts) > _SHOWN else ""
            shown_values = ", ".join(texts[:_SHOWN])
            raise UserError(
                f"no record has {condition.column} '{_written(value)}'{hint or ';'} there are: {shown_values}{more}"
            )
