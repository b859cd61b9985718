"""The table that ``bench speed`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console

from ..tables.table import Cell, Column, Field, Table, number_columns
from ..tables.terminal import render
from .measure import Series, median_ratio

_BATCH = {
    "first_token_seconds": ("first token [ms]", 1e-3),
    "decode_tokens_per_second": ("decode [tokens/s]", 1.0),
}
_PROCESS = {
    "load_seconds": ("load [s]", 1.0),
    "weight_bytes": ("weights [MB]", 1e6),
    "peak_memory_bytes": ("peak memory [MB]", 1e6),
}


def print_speed(series: Sequence[Series], console: Console) -> None:
    """Print medians with the least and largest round, and their ratio to the dense model's in the same rounds."""
    for engine in dict.fromkeys(entry.spec.engine for entry in series):
        chosen = [entry for entry in series if entry.spec.engine == engine]
        parts = ((_title(chosen[0]), _BATCH, chosen[0].spec.batch_sizes), ("", _PROCESS, (None,)))
        render([_table(title, columns, chosen, series, batches) for title, columns, batches in parts], console)


def _title(entry: Series) -> str:
    spec, measured = entry.spec, entry.rounds[0]
    threads = f"{spec.threads} thread{'s' if spec.threads > 1 else ''}"
    return (
        f"{spec.engine} {measured.engine_version}, {spec.dtype}, {measured.device or spec.device}, {threads}, "
        f"{spec.prompt_tokens} + {spec.new_tokens} tokens; medians of {len(entry.rounds)} rounds [least, largest], "
        "× dense"
    )


def _table(
    title: str,
    columns: Mapping[str, tuple[str, float]],
    chosen: Sequence[Series],
    series: Sequence[Series],
    batches: Sequence[int | None],
) -> Table:
    several = batches != (None,)
    headings = [*(["batch"] if several else []), *(heading for heading, _ in columns.values())]
    rows: list[list[Cell]] = []
    for batch in batches:
        for entry in chosen:
            cells = [_cell(entry, series, metric, unit, batch) for metric, (_, unit) in columns.items()]
            rows.append([entry.subject.name, *([batch] if several else []), *cells])
    return Table(title, [Column(""), *number_columns(*headings)], rows)


def _cell(entry: Series, series: Sequence[Series], metric: str, unit: float, batch: int | None) -> Field:
    reference = None if entry.reference is None else series[entry.reference].values(metric, batch)
    return field_of_rounds(entry.values(metric, batch), unit, reference)


def field_of_rounds(values: Sequence[float], unit: float, reference: Sequence[float] | None) -> Field:
    """Return a cell: the median, the least and the largest round, and the median ratio to a reference's rounds.

    Args:
        values: one a round.
        unit: what they are divided by to be shown.
        reference: of the same rounds; left out where a round of it is 0, which no ratio can be taken to.
    """
    middle = statistics.median(values) / unit
    spread = f"[{_number(min(values) / unit)}, {_number(max(values) / unit)}]" if len(values) > 1 else ""
    if reference is not None and all(reference):
        spread += f"  {median_ratio(values, reference):.2f}×"
    return Field(_number(middle), middle, spread.strip())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
