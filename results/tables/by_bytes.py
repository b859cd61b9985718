"""All rows of one benchmark over the bytes of their weights, where any of them is quantised."""

from __future__ import annotations

from collections.abc import Sequence

from .pivot import Cell, Pivot, Row, format_cell
from .table import Cell as TableCell
from .table import Column, Field, Table, number_columns

BYTES = ("B", "kB", "MB", "GB")
_NOTE = (
    "share: bytes on disk (packed, where weights are rounded) over those of the uncompressed parameters in bfloat16; "
    "in memory: as the evaluation's engine held them, rounded ones dequantised"
)


def by_bytes(table: Pivot) -> Table | None:
    """Return a line for each model, the largest on disk first; None where no row has rounded weights."""
    if not any(is_rounded(row) for row in table.rows):
        return None
    lines = [(cell.bytes, row, ratio, cell) for row in table.rows for ratio, cell in row.cells.items()]
    lines.sort(key=lambda line: (-line[0], line[1].label))
    rows: list[list[TableCell]] = []
    for _, row, ratio, cell in lines:
        value, interval = format_cell(table.metric, cell)
        shown = row.label if row.uncompressed or row.control else f"{row.label} @{ratio:g}"
        sizes = [Field(scaled(size, BYTES), size) for size in (cell.bytes, cell.runtime_bytes)]
        share = share_of_bfloat16(cell)
        rows.append([shown, Field(f"{share:.3f}", share), *sizes, Field(value, cell.value, interval)])
    columns = [Column(""), *number_columns("share", "on disk", "in memory", table.measure)]
    return Table(f"{table.title}, over bytes", columns, rows, notes=[_NOTE])


def is_rounded(row: Row) -> bool:
    """Whether a row's weights are rounded: a control's, or those of 8-bit factors."""
    return row.control or row.bits is not None


def share_of_bfloat16(cell: Cell) -> float:
    """Return the bytes on disk as a share of what the uncompressed model's parameters take in bfloat16."""
    # params × ratio is the uncompressed count of parameters, which a cell does not hold.
    return cell.bytes / (2 * cell.params * cell.ratio)


def scaled(count: float, units: Sequence[str]) -> str:
    """Return a number with the unit that leaves at most three digits before the point."""
    for unit in units[:-1]:
        if count < 1000:
            return f"{count:.4g} {unit}".strip()
        count /= 1000
    return f"{count:,.4g} {units[-1]}"
