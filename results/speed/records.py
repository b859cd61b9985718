"""From timed rounds to records, and the file they are kept in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...foundation.files import canonical_json, digest, write_json
from ...models.loading import DTYPES
from ...models.matrices import Size
from ...records.files import CSV_NAME, KEY_COLUMNS, Record, read_records, write_records
from ...runners.provenance import git_commit, processor, versions
from .joining import BENCHMARK, HEADLINE
from .measure import Series
from .subject import Subject

_PER_BATCH = {
    "first_token_seconds": "time_to_first_token_seconds",
    "decode_tokens_per_second": "decode_tokens_per_second",
}
_PER_PROCESS = ("load_seconds", "peak_memory_bytes", "weight_bytes")


def speed_records(series: Sequence[Series]) -> list[Record]:
    """Return one record per checkpoint, engine, metric and, for what depends on it, batch size.

    The value is the median over rounds, ``low`` and ``high`` are the least and the largest round: an interval for the
    median that holds with probability 1 - 0.5^(n-1) (its `confidence`); one round alone bounds nothing.
    """
    rows = []
    for entry in series:
        sizes = entry.spec.batch_sizes
        for batch in sizes:
            conditions = _conditions(entry, variant_name(entry, (batch,)))
            rows += [_record(entry, conditions, name, entry.values(key, batch)) for key, name in _PER_BATCH.items()]
        conditions = _conditions(entry, variant_name(entry, sizes) + ("-process" if len(sizes) > 1 else ""))
        rows += [_record(entry, conditions, name, entry.values(name)) for name in _PER_PROCESS]
    return rows


def variant_name(entry: Series, batches: Sequence[int]) -> str:
    """Return the name of the conditions: engine, batch sizes, lengths, number format, device and threads."""
    spec, machine = entry.spec, machine_name(entry.spec.device, entry.spec.threads)
    sizes = "+".join(map(str, batches))
    return f"speed-{spec.engine}-batch{sizes}-prompt{spec.prompt_tokens}-new{spec.new_tokens}-{spec.dtype}-{machine}"


def machine_name(device: str, threads: int) -> str:
    """Return where a model ran, as part of a variant's name: ``cpu-2threads``."""
    return f"{device.partition(':')[0]}-{threads}thread{'s' if threads > 1 else ''}"


def save_speed(folder: Path, series: Sequence[Series]) -> Path:
    """Add records to ``results.csv`` and ``.parquet`` of a folder, and keep every round in ``rounds-….json``.

    Records of the same checkpoint under the same conditions replace older ones.

    Returns:
        The path of ``results.csv``.

    Raises:
        UserError: the folder holds results that cannot be read.
    """
    rounds = [
        {"name": s.subject.name, "records": _stage_key(s), "rounds": [r.to_dict() for r in s.rounds]} for s in series
    ]
    return add_records(folder, speed_records(series), rounds)


def add_records(folder: Path, new: Sequence[Record], rounds: object) -> Path:
    """Put records into a folder's, in the place of those with the same key, and rounds into a file of their own.

    Returns:
        The path of ``results.csv``.
    """
    names = {_key(record) for record in new}
    others = [record for record in stored_records(folder) if _key(record) not in names]
    write_json(folder / f"rounds-{digest(rounds)[:12]}.json", rounds)
    return write_records(folder, [*others, *new])[0]


def stored_records(folder: Path) -> list[Record]:
    """Return the records that a folder holds; none where it has no results yet."""
    if not (folder / CSV_NAME).is_file():
        return []
    rows = read_records(folder).to_dict("records")
    return [Record(**{str(key): value for key, value in row.items()}) for row in rows]


def _key(record: Record) -> tuple[Any, ...]:
    return tuple(getattr(record, column) for column in KEY_COLUMNS)


def _stage_key(entry: Series) -> str:
    return f"{BENCHMARK}-{digest([entry.subject.origin.columns(), variant_name(entry, entry.spec.batch_sizes)])[:16]}"


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a checkpoint was timed; see the fields of `records.schema.Record`."""

    benchmark: str
    variant: str
    engine: str
    dtype: str
    device: str
    threads: int
    seconds_evaluate: float
    peak_memory_bytes: int
    dataset_sha256: str
    stage_key: str


@dataclass(frozen=True)
class Median:
    """The median of timed rounds, with the interval that holds it; see `median_of_rounds`."""

    value: float
    low: float
    high: float
    confidence: float


def _conditions(entry: Series, variant: str) -> Conditions:
    spec, last = entry.spec, entry.rounds[-1]
    problems = [spec.prompt_tokens, spec.new_tokens, [spec.prompts(1, 1 << 20)]]
    return Conditions(
        BENCHMARK,
        variant,
        spec.engine,
        spec.dtype,
        last.device or processor(),
        last.threads,
        sum(entry.values("seconds")),
        int(max(entry.values("peak_memory_bytes"))),
        digest(problems),
        _stage_key(entry),
    )


def _record(entry: Series, conditions: Conditions, metric: str, values: Sequence[float]) -> Record:
    median = median_of_rounds(values, counted=metric == "weight_bytes")
    best = metric == HEADLINE
    version = entry.rounds[-1].engine_version
    return speed_record(entry.subject, entry.size, version, conditions, metric, median, len(entry.rounds), best, best)


def speed_record(
    subject: Subject,
    size: Size,
    engine_version: str,
    conditions: Conditions,
    metric: str,
    median: Median,
    n: int,
    headline: bool,
    higher_is_better: bool,
    scorer: str = "",
) -> Record:
    """Return the record of one metric of one checkpoint, with the versions of this software.

    Args:
        subject, size: the checkpoint, and its weights on disk.
        engine_version: of the library behind the engine.
        conditions: under which it was timed.
        metric, median, n, headline, higher_is_better, scorer: what came out, of how many rounds or requests.
    """
    columns = subject.origin.columns() | asdict(conditions) | asdict(median)
    columns |= {
        "metric": metric,
        "n": n,
        "headline": headline,
        "higher_is_better": higher_is_better,
        "scorer": scorer,
        "bytes": size.bytes,
        "runtime_bytes": size.parameters * DTYPES[conditions.dtype].itemsize,
        "isolation": "",
        "prompt_sha256": "",
        "versions": canonical_json(versions() | {conditions.engine: engine_version}),
        "git_commit": git_commit(),
        "evaluated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return Record.model_validate(columns)


def median_of_rounds(values: Sequence[float], counted: bool = False) -> Median:
    """Return the median of one value a round.

    The least and the largest of n rounds hold the median with probability 1 - 0.5^(n-1); one round bounds nothing,
    unless it was ``counted``.
    """
    bounded = len(values) > 1 or counted
    return Median(
        statistics.median(values),
        min(values) if bounded else float("-inf"),
        max(values) if bounded else float("inf"),
        1 - 0.5 ** (len(values) - 1) if len(values) > 1 else 0.95,
    )
