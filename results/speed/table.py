"""The table that ``bench speed`` prints."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

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
    for engine in dict.fromkeys(one.spec.engine for one in series):
        chosen = [one for one in series if one.spec.engine == engine]
        console.print()
        console.print(Text(_title(chosen[0]), style="bold"))
        for columns, batches in ((_BATCH, chosen[0].spec.batch_sizes), (_PROCESS, (None,))):
            console.print(_table(columns, chosen, series, batches))


def _title(one: Series) -> str:
    spec, measured = one.spec, one.rounds[0]
    threads = f"{spec.threads} thread{'s' if spec.threads > 1 else ''}"
    return (
        f"{spec.engine} {measured.engine_version}, {spec.dtype}, {measured.device or spec.device}, {threads}, "
        f"{spec.prompt_tokens} + {spec.new_tokens} tokens; medians of {len(one.rounds)} rounds [least, largest], "
        "× dense"
    )


def _table(
    columns: Mapping[str, tuple[str, float]],
    chosen: Sequence[Series],
    series: Sequence[Series],
    batches: Sequence[int | None],
) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    if batches != (None,):
        table.add_column("batch", justify="right")
    for heading, _ in columns.values():
        table.add_column(escape(heading), justify="right", overflow="fold")
    for batch in batches:
        for one in chosen:
            cells = [_cell(one, series, metric, unit, batch) for metric, (_, unit) in columns.items()]
            table.add_row(escape(one.subject.name), *([str(batch)] if batch else []), *map(escape, cells))
    return table


def _cell(one: Series, series: Sequence[Series], metric: str, unit: float, batch: int | None) -> str:
    values = one.values(metric, batch)
    text = _number(statistics.median(values) / unit)
    if len(values) > 1:
        text += f" [{_number(min(values) / unit)}, {_number(max(values) / unit)}]"
    if one.reference is not None:
        text += f"  {median_ratio(values, series[one.reference].values(metric, batch)):.2f}×"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
