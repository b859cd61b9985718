"""The tables that ``bench speed --online`` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..tables.table import Cell, Column, Table, number_columns
from ..tables.terminal import render
from .online import OnlineSeries
from .online_records import device_name, objectives_name
from .table import field_of_rounds

_TIMES = {
    "first_token": ("first token [ms]", 1e-3),
    "first_token_p99": ("p99", 1e-3),
    "per_token": ("per token [ms]", 1e-3),
    "between_tokens": ("between tokens [ms]", 1e-3),
    "latency": ("request [ms]", 1e-3),
    "latency_p99": ("p99", 1e-3),
}
_RATES = {
    "requests_per_second": ("requests/s", 1.0),
    "output_tokens_per_second": ("output tokens/s", 1.0),
    "goodput": ("goodput [requests/s]", 1.0),
}


def print_online(series: Sequence[OnlineSeries], console: Console) -> None:
    """Print medians with the least and the largest round, and their ratio to the dense model's in the same rounds."""
    spec = series[0].spec
    threads = f"{spec.threads} thread{'s' if spec.threads > 1 else ''}"
    count = len(series[0].rounds)
    rounds = f"medians of {count} rounds [least, largest]" if count > 1 else "one round"
    title = (
        f"vllm serve {series[0].version}, {spec.dtype}, {device_name(spec.device)}, {threads}, {spec.requests} "
        f"requests of {spec.prompt_tokens} + {spec.new_tokens} tokens; {rounds}, × dense"
    )
    rates = {name: column for name, column in _RATES.items() if name != "goodput" or spec.objectives}
    goals = f"goodput: requests that met {objectives_name(series[0])} (milliseconds)" if spec.objectives else ""
    render([_table(title, _TIMES, series), _table(goals, rates, series)], console)


def _table(title: str, columns: dict[str, tuple[str, float]], series: Sequence[OnlineSeries]) -> Table:
    rows: list[list[Cell]] = []
    for load in series[0].spec.loads:
        for entry in series:
            reference = None if entry.reference is None else series[entry.reference]
            cells: list[Cell] = [
                field_of_rounds(
                    entry.values(name, load), unit, None if reference is None else reference.values(name, load)
                )
                for name, (_, unit) in columns.items()
            ]
            rows.append([entry.subject.name, load.title, *cells])
    return Table(title, [Column(""), Column("load"), *number_columns(*(text for text, _ in columns.values()))], rows)
