"""Does low rank beat plain quantisation at equal bytes? A sentence that follows from a table's rows."""

from __future__ import annotations

from ..tables.by_bytes import share_of_bfloat16
from ..tables.pivot import Cell, Pivot, format_value, is_fraction
from .verdicts import lies_apart

EQUAL = 1.02
"""A low-rank row counts as of a control's bytes up to so many times its own."""


def equal_bytes(table: Pivot) -> str:
    """Return whether the best low-rank row of at most each control's bytes beats it, in one sentence."""
    if not table.controls:
        return (
            "No control was run, so how plain quantisation does at equal bytes is not known (--controls "
            "rtn-int8,rtn-int4)."
        )
    parts = [_against(table, row.label, cell) for row in table.controls for cell in row.cells.values()]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _against(table: Pivot, control: str, cell: Cell) -> str:
    """Compare one control with the best low-rank row that takes no more bytes."""
    size = f"{share_of_bfloat16(cell):.3f} of the bfloat16 model's bytes"
    rows = [row for row in table.rows if not (row.uncompressed or row.control)]
    lines = [(f"{row.label} at {ratio:.4g}×", c) for row in rows for ratio, c in row.cells.items()]
    small = [(name, c) for name, c in lines if c.bytes <= EQUAL * cell.bytes]
    if not small:
        return f"no low-rank row is as small as the control {control}, {size}"
    pick = max if table.higher_is_better else min
    name, best = pick(small, key=lambda line: line[1].value)
    if lies_apart(table, best, cell):
        verdict = "beats the control"
    elif lies_apart(table, cell, best):
        verdict = "loses to the control"
    else:
        verdict = "is not separated from the control, whose interval overlaps"
    share = f"{share_of_bfloat16(best):.3f}"
    return (
        f"at the bytes of {control}, {size}, the best low-rank row, {name} with {share}, {verdict}: "
        f"{_value(table, best)} against {_value(table, cell)}"
    )


def _value(table: Pivot, cell: Cell) -> str:
    low, high = format_value(table.metric, cell.low), format_value(table.metric, cell.high)
    return f"{format_value(table.metric, cell.value)}{' %' if is_fraction(table.metric) else ''} [{low}, {high}]"
