"""The files of records, results.csv and results.parquet: written with checksums, read with every row validated."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ..foundation.errors import UserError
from ..foundation.plain import read_input
from .checksums import CSV_NAME, PARQUET_NAME, check_against_checksums, write_with_checksums
from .schema import (
    BUDGET,
    COLUMNS,
    KEY_COLUMNS,
    SCHEMA_VERSION,
    STAGES,
    TIMING_COLUMNS,
    Record,
    columns_of,
    expected_columns,
    upgraded,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    *("COLUMNS", "KEY_COLUMNS", "SCHEMA_VERSION", "TIMING_COLUMNS", "Record"),
    *("csv_text", "read_records", "same_results", "to_frame", "to_records", "write_records"),
]

# First as people read the rows, then by all of the key, which makes the order complete; columns may come twice.
_ORDER = (
    *("sweep", "model", "task", "stage", "label", "ratio_target"),
    *(BUDGET, "seed", "benchmark", "variant", "metric", "scorer"),
    *(c for c in KEY_COLUMNS),
)
MAX_BYTES, MAX_RECORDS = 1 << 29, 500_000
"""Largest file of records that is read, and most records in it."""
_MAX_LINE = 1 << 21

_CSV_FALSE_TRUE = ("false", "true")


def write_records(folder: Path, records: Iterable[Record]) -> tuple[Path, Path]:
    """Write results.csv, results.parquet and their checksums; equal records give equal bytes in any order given.

    Returns:
        The paths of the two files.

    Raises:
        UserError: two records have the same key.
    """
    rows = list(records)
    _check_keys("", rows)
    ordered = sorted(rows, key=_sort_key)
    write_with_checksums(folder, {CSV_NAME: _csv_text(ordered).encode(), PARQUET_NAME: _parquet_bytes(ordered)})
    return folder / CSV_NAME, folder / PARQUET_NAME


def csv_text(records: Iterable[Record]) -> str:
    """Return records as results.csv has them; equal records give equal text in any order given.

    Raises:
        UserError: two records have the same key.
    """
    rows = list(records)
    _check_keys("", rows)
    return _csv_text(sorted(rows, key=_sort_key))


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return records as a data frame with the schema's columns, types and row order."""
    import pandas as pd

    ordered = sorted(records, key=_sort_key)
    types = {int: "int64", float: "float64", bool: "bool", str: "str"}
    columns = {c: pd.Series([getattr(r, c) for r in ordered], dtype=types[_kind(c)]) for c in COLUMNS}
    return pd.DataFrame(columns)


def to_records(frame: pd.DataFrame) -> list[Record]:
    """Return a frame's rows as records; the inverse of `to_frame`.

    Raises:
        UserError: a row is not a valid record.
    """
    return _validated("", frame[list(COLUMNS)].to_dict("records"))


def read_records(path: Path | str) -> pd.DataFrame:
    """Read and validate results.csv, results.parquet, or a run's folder with one of them (Parquet is taken first).

    Returns:
        A frame as `to_frame` makes it.

    Raises:
        UserError: the file is missing, cannot be read, has changed since it was written, or is not made of valid
            records that agree; the sentence names the file, the record and the column.
    """
    source, path = Path(path), _results_file(Path(path))
    raw = read_input(path, "results file", MAX_BYTES)
    if path.suffix == ".parquet":
        check_against_checksums(path, raw)
        rows = _parquet_rows(path, raw)
    else:
        rows = _csv_rows(path, raw)
    # Validated from Parquet too: a type that fits says nothing of ranges, lengths and agreement.
    records = _validated(f"{path}: ", rows)
    _check_keys(f"{path}: ", records)
    if path.suffix == ".csv":
        check_against_checksums(path, raw)  # last: what makes the file unreadable is said first
    if source.is_dir() and path.name == PARQUET_NAME and (other := source / CSV_NAME).is_file():
        check_against_checksums(other, read_input(other, "results file", MAX_BYTES))  # else an edit would be ignored
    return to_frame(records)


def _validated(prefix: str, rows: Iterable[Mapping[Any, Any]]) -> list[Record]:
    records = []
    for number, row in enumerate(rows, start=1):
        try:
            records.append(Record.model_validate(upgraded(row)))
        except ValidationError as error:
            raise UserError(f"{prefix}record {number} is not valid: {_first_error(error)}") from None
    return records


def same_results(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return one sentence for each difference between two frames of records, `TIMING_COLUMNS` ignored; [] if equal."""
    differences = []
    first, second = ({tuple(row[c] for c in KEY_COLUMNS): row for row in f.to_dict("records")} for f in (a, b))
    for key in [*first, *(k for k in second if k not in first)]:
        if key not in first or key not in second:
            side = "second" if key not in first else "first"
            differences.append(f"only the {side} has {_short(dict(zip(KEY_COLUMNS, key, strict=True)))}")
            continue
        for column in COLUMNS:
            x, y = first[key][column], second[key][column]
            if column not in TIMING_COLUMNS and x != y:
                differences.append(f"{_short(first[key])}: {column} is {x!r} in the first and {y!r} in the second")
    return differences


@cache
def _kind(column: str) -> type:
    annotation = Record.model_fields[column].annotation
    if annotation in (int, float, bool, str):
        return annotation  # type: ignore[return-value]
    return str


_order_values, _key_values = attrgetter(*_ORDER), attrgetter(*KEY_COLUMNS)
_STAGE_INDICES = [i for i, column in enumerate(_ORDER) if column == "stage"]


def _sort_key(record: Record) -> tuple[Any, ...]:
    values = list(_order_values(record))
    for i in _STAGE_INDICES:
        values[i] = STAGES.index(values[i])
    return tuple(values)


def _check_keys(prefix: str, records: Sequence[Record]) -> None:
    """Refuse two records of one measurement: those that say the same, and those that contradict each other."""
    seen: dict[tuple[Any, ...], int] = {}
    for number, record in enumerate(records, start=1):
        earlier = seen.setdefault(_key_values(record), number)
        if earlier == number:
            continue
        first = records[earlier - 1]
        which = f"{prefix}records {earlier} and {number} describe the same measurement ({_short(record.model_dump())})"
        differing = [c for c in COLUMNS if getattr(first, c) != getattr(record, c)]
        results = [c for c in differing if c not in TIMING_COLUMNS]
        if results:
            c = results[0]
            values = f"{c} is {_quoted(getattr(first, c))} in one and {_quoted(getattr(record, c))} in the other"
            raise UserError(f"{which} and contradict each other: {values}; leave one of them out")
        raise UserError(f"{which}{', timed twice' if differing else ' twice'}; leave one of them out")


def _quoted(value: Any) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else f"{value!r}"


def _short(row: Mapping[Any, Any]) -> str:
    return (
        f"{row['model']} {row['task']} {row['label']} {row['stage']} {row['ratio_target']:g}x seed {row['seed']} "
        f"{row['variant']} {row['metric']}{' ' if row['scorer'] else ''}{row['scorer']}"
    )


def _csv_text(records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in records:
        writer.writerow([_csv_cell(getattr(record, c)) for c in COLUMNS])
    return text.getvalue()


def _csv_cell(value: Any) -> str:
    if isinstance(value, bool):
        return _CSV_FALSE_TRUE[value]
    # `repr` of a float reads back as the very same number.
    return repr(value) if isinstance(value, float) else str(value)


def _parquet_bytes(records: Sequence[Record]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {int: pa.int64(), float: pa.float64(), bool: pa.bool_(), str: pa.string()}
    arrays = [pa.array([getattr(r, c) for r in records], type=types[_kind(c)]) for c in COLUMNS]
    buffer = io.BytesIO()
    # Checksums of pages find damage in a file that was copied without its results.sha256.
    pq.write_table(pa.table(arrays, names=list(COLUMNS)), buffer, write_page_checksum=True)
    return buffer.getvalue()


def _results_file(path: Path) -> Path:
    if path.is_dir():
        for name in (PARQUET_NAME, CSV_NAME):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path} holds no {CSV_NAME}; name the folder of a finished run, or a .csv or .parquet file")
    if not path.exists():
        raise UserError(f"{path} does not exist; name a run's folder, or a .csv or .parquet file")
    if path.suffix not in (".csv", ".parquet") or not path.is_file():
        raise UserError(f"{path} is not a results file; name a run's folder, or a .csv or .parquet file")
    return path


def _csv_rows(path: Path, raw: bytes) -> list[dict[str, Any]]:
    try:
        lines = _csv_lines(path, raw.decode("utf-8-sig"))  # spreadsheets begin UTF-8 with a byte order mark
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} cannot be read as CSV: it is not UTF-8 (byte {error.start}); save it as CSV in UTF-8"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as CSV ({error}); write it again with 'bench run'") from None
    if (
        lines
        and len(lines[0]) == 1
        and len(lines[0][0].split(";")) in {len(columns_of(version)) for version in range(1, SCHEMA_VERSION + 1)}
    ):
        raise UserError(f"{path} is separated by semicolons; save it with commas")
    at = lines[0].index("schema_version") if lines and "schema_version" in lines[0] else None
    if at is not None:
        _check_version(path, (line[at] for line in lines[1:] if len(line) == len(lines[0])))
    versions = {line[at] for line in lines[1:] if len(line) == len(lines[0])} if lines and at is not None else set()
    _check_columns(path, lines[0] if lines else [], versions)
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(lines[0]):
            raise UserError(
                f"{path}: record {number} has {len(line)} of {len(lines[0])} cells; the file is cut off or torn"
            )
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    """Return the cells of each line, the header first; ends before a file with too much of anything fills memory."""
    length = 0

    def parts() -> Iterator[str]:
        nonlocal length
        for part in io.StringIO(text, newline=""):
            length += len(part)
            if length > _MAX_LINE:
                raise UserError(f"{path} has a record of more than {_MAX_LINE:,} characters; name a file of records")
            yield part

    lines: list[list[str]] = []
    # The reader takes one line after the other until a record is complete; an open quote makes it take many.
    for cells in csv.reader(parts(), strict=True):
        length = 0
        lines.append(cells)
        _check_amount(path, len(lines) - 1)
        if len(cells) != len(lines[0]):
            break  # what comes behind a torn record is not looked at
    return lines


def _check_amount(path: Path, records: int) -> None:
    if records > MAX_RECORDS:
        raise UserError(f"{path} has more than {MAX_RECORDS:,} records; split it")


def _check_parquet(path: Path, file: Any) -> list[str]:
    """Look at a Parquet file's own account of its content before any of it is expanded; returns its columns of text.

    Kilobytes can become gigabytes: repeated values are stored once.
    """
    import pyarrow as pa

    metadata, schema = file.metadata, file.schema_arrow
    if len(schema.names) > 2 * len(COLUMNS):  # fewer may be another version's, for which there is an error of its own
        _check_columns(path, schema.names)
    for field in schema:
        if pa.types.is_nested(field.type) or pa.types.is_fixed_size_binary(field.type):
            raise UserError(f"{path} has no numbers or text in the column {field.name[:60]!a}; name a file of records")
    _check_amount(path, metadata.num_rows)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    if sum(group.total_byte_size for group in groups) > MAX_BYTES:
        raise UserError(f"{path} holds more than {MAX_BYTES:,} bytes when it is read; split it")
    return [
        field.name for field in schema if not pa.types.is_primitive(field.type) and not pa.types.is_null(field.type)
    ]


def _check_text(path: Path, table: Any) -> None:
    """Refuse a table whose text, stored once for many rows, would fill memory when written out for each row."""
    import pyarrow.compute as pc

    total = 0
    for column in table.columns:
        for chunk in column.chunks:
            if hasattr(chunk, "dictionary"):
                total += pc.sum(pc.binary_length(chunk.dictionary).take(chunk.indices)).as_py() or 0
    if total > MAX_BYTES:
        raise UserError(f"{path} holds {total:,} bytes of text when it is read; split it")


def _parquet_rows(path: Path, raw: bytes) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        text = _check_parquet(path, pq.ParquetFile(io.BytesIO(raw)))
        # Text stays in dictionaries until `_check_text` knows how long it is when written out.
        table = pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True, read_dictionary=text).read()
        _check_text(path, table)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise UserError(f"{path} cannot be read as Parquet ({reason}); write it again with 'bench run'") from None
    versions = table.column("schema_version").unique().to_pylist() if "schema_version" in table.column_names else []
    _check_version(path, versions)
    _check_columns(path, table.column_names, versions)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _check_version(path: Path, versions: Iterable[Any]) -> None:
    """Refuse a schema of the future before its columns, which may differ, are looked at."""
    for version in set(versions):
        if str(version).isdecimal() and int(version) > SCHEMA_VERSION:
            raise UserError(f"{path}: {_future(version)}")


def _future(version: Any) -> str:
    return f"schema_version is {version} and this version reads {SCHEMA_VERSION}; update lowrank-bench"


def _check_columns(path: Path, columns: Sequence[str], versions: Iterable[Any] = ()) -> None:
    expected = expected_columns(versions)
    missing = [c for c in expected if c not in columns]
    foreign = [c for c in columns if c not in expected]
    if missing or foreign or len(columns) != len(expected):
        lists = {"missing": missing, "unknown": foreign}
        problems = [f"{word}: {', '.join(names[:5])}" for word, names in lists.items() if names]
        raise UserError(
            f"{path} has not the columns of records, schema version {SCHEMA_VERSION} "
            f"({'; '.join(problems) or 'a column twice'}); name a {CSV_NAME} that 'bench run' wrote"
        )


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    column = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if column == "schema_version":
        version = first["input"]
        if isinstance(version, int | str) and str(version).isdecimal() and int(version) > SCHEMA_VERSION:
            return _future(version)
        return f"schema_version is {_quoted(version)}; this version reads 1 to {SCHEMA_VERSION}"
    return f"{column}: {message}" if column else message
