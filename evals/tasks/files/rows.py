"""Rows of the files that people have, one at a time: JSON lines, CSV, Parquet, and what the hub holds of them.

CSV fields stay text (`007`, `NA`). A byte-order mark and line ends of any kind are read over. Columns that are not
asked for are ignored. Every refusal names the file, the line or row, and the column.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import math
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ....foundation.errors import UserError, did_you_mean
from ....foundation.files import open_regular
from ....foundation.progress import counting
from ....models.hub import explain, fetch_snapshot
from .schema import Data

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
MAX_FIELD = 64 << 20
"""Most characters of one line or field."""
_BATCH = 512
_REPORTED = 8 << 20
"""Bytes of a file from which on it is said how much is read, and how often."""
_REPORTED_ROWS = 100_000
"""The same for rows of Parquet."""


class Row(NamedTuple):
    """One row: where it is, such as ``line 3 of 'train.jsonl'``, its number, and its columns."""

    title: str
    number: int
    values: Mapping[str, Any]


def is_file(data: str) -> bool:
    """Return whether a source is a file rather than a hub id."""
    return data.lower().endswith(SUFFIXES) or Path(data).is_absolute()


def shown(source: Data) -> str:
    """Return how messages name a source."""
    return f"'{Path(source.data).name}'" if is_file(source.data) else f"'{source.data}'"


def read_rows(source: Data, required: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a source, of which at most one batch is in memory.

    Args:
        source: a file, by its absolute path, or a hub dataset.
        required: columns that every row must have; None for all there are, unchecked.

    Raises:
        UserError: no such file, a file that is none of its kind, or a row without a column.
    """
    if not is_file(source.data):
        yield from _hub(source, required)
        return
    path = Path(source.data)
    if path.suffix == ".parquet":
        yield from _parquet(path, required)
    elif path.name.removesuffix(".gz").endswith((".csv", ".tsv")):
        yield from _csv(path, source.delimiter, required)
    else:
        yield from _json(path, required)


def columns_of(source: Data) -> list[str]:
    """Return the columns of a source's first row.

    Raises:
        UserError: as `read_rows`, or it has no rows.
    """
    for row in read_rows(source):
        return [str(name) for name in row.values]
    raise UserError(f"{shown(source)} has no rows; name a file with at least one")


def _checked(title: str, number: int, values: Mapping[str, Any], required: Sequence[str] | None) -> Row:
    for name in required or ():
        if name not in values:
            names = [str(column) for column in values]
            raise UserError(
                f"{title} has no column '{name}'{did_you_mean(name, names) or ';'} its columns: {', '.join(names)}"
            )
    return Row(title, number, values)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines without their ends."""
    number = behind = 0
    try:
        with open_regular(path) as raw:
            size = os.fstat(raw.fileno()).st_size
            report = counting(f"MB of '{path.name}' read") if size > _REPORTED else None
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            # One more than allowed: enough to notice a longer line without reading all of it.
            while line := file.readline(MAX_FIELD + 1):
                number += 1
                behind += len(line)
                if report and behind > _REPORTED:
                    report(raw.tell() >> 20, size >> 20)
                    behind = 0
                if len(line) > MAX_FIELD:
                    raise UserError(f"line {number} of '{path.name}' has more than {MAX_FIELD:,} bytes; shorten it")
                if number == 1:
                    if line.startswith(b"\x1f\x8b"):
                        raise UserError(f"'{path.name}' is compressed by gzip; name it '{path.name}.gz'")
                    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                        raise UserError(f"'{path.name}' is UTF-16 text; save it as UTF-8")
                    line = line.removeprefix(codecs.BOM_UTF8)
                yield number, line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"line {number} of '{path.name}' is not UTF-8 text; save the file as UTF-8") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"'{path.name}' is damaged or cut off after line {number}; make it again") from error
    except gzip.BadGzipFile as error:
        whose = f"after line {number} of" if number else "in"
        raise UserError(
            f"the bytes {whose} '{path.name}' are not those of a gzip file; make it again, or name it without '.gz'"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the data file {path} cannot be read ({reason}); name an existing file") from error


def _to_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it names '{twice}' twice")
    return values


_DECODER = json.JSONDecoder(object_pairs_hook=_to_object)


def _json(path: Path, required: Sequence[str] | None) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        title = f"line {number} of '{path.name}'"
        try:
            values = _DECODER.decode(line)
        except RecursionError:
            raise UserError(f"{title} is nested too deeply; write it with fewer brackets") from None
        except ValueError as error:
            hint = 'one JSON object a line, such as {"prompt": "…", "completion": "…"}'
            message = getattr(error, "msg", str(error))
            raise UserError(f"{title} is not JSON ({message}); write {hint}") from error
        if not isinstance(values, dict):
            raise UserError(f"{title} is not a JSON object; write one object a line, without brackets around them")
        yield _checked(title, number, values, required)


def _csv(path: Path, delimiter: str | None, required: Sequence[str] | None) -> Iterator[Row]:
    separator = delimiter or ("\t" if path.name.removesuffix(".gz").endswith(".tsv") else ",")
    csv.field_size_limit(MAX_FIELD)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=separator, strict=True)
    header: list[str] = []
    while True:
        # A row may go over several lines, and messages name the one that it starts on.
        start = reader.line_num + 1
        title = f"line {start} of '{path.name}'"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{title} is not CSV ({error}); close every quotation mark that is opened") from error
        if fields is None:
            return
        if not fields:  # a blank line
            continue
        if not header:
            header = [name.strip() for name in fields]
            _check_header(header, path, separator)
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{title} has {len(fields)} fields and the header {len(header)} ({', '.join(header)}); put fields that "
                f"contain '{separator}' in quotation marks"
            )
        yield _checked(title, start, dict(zip(header, fields, strict=True)), required)


def _check_header(header: Sequence[str], path: Path, separator: str) -> None:
    for name in header:
        if header.count(name) > 1:
            raise UserError(f"line 1 of '{path.name}' names the column '{name}' twice; rename one of them")
    if len(header) == 1 and separator == "," and any(other in header[0] for other in ";\t|"):
        other = next(other for other in ";\t|" if other in header[0])
        raise UserError(
            f"line 1 of '{path.name}' has one column, '{header[0]}'; if its fields are apart by {other!r}, write "
            f"delimiter: {json.dumps(other)}"
        )


def _parquet(path: Path, required: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with open_regular(path) as raw:
            file = pq.ParquetFile(raw)
            names = list(file.schema_arrow.names)
            for name in names:
                if names.count(name) > 1:
                    raise UserError(f"'{path.name}' has the column '{name}' twice; rename one of them")
            _checked(f"'{path.name}'", 0, dict.fromkeys(names), required)
            columns = list(dict.fromkeys(required)) if required is not None else names
            rows = file.metadata.num_rows
            report = counting(f"rows of '{path.name}' read") if rows > _REPORTED_ROWS else None
            for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
                if report and number % (8 * _BATCH) == 0 and number:
                    report(number, rows)
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"row {number} of '{path.name}'", number, values)
    except pa.ArrowException as error:
        raise UserError(f"'{path.name}' is no readable Parquet file ({error}); make it again") from error
    except OSError as error:
        if error.strerror is None:  # pyarrow's own, of bytes that cannot be unpacked
            raise UserError(f"'{path.name}' is damaged ({error}) after row {number}; make it again") from error
        raise UserError(f"the data file {path} cannot be read ({error.strerror}); name an existing file") from error


def _hub(source: Data, required: Sequence[str] | None) -> Iterator[Row]:
    import datasets

    datasets.disable_progress_bars()
    split = source.split or "train"
    name = f"{source.data}@{source.revision}/{split}"
    try:
        # The files of a snapshot are those of its commit, with a connection or without (datasets issue 7928).
        folder = fetch_snapshot(source.data, source.revision or "", "dataset", None)
        config = _known_config(source, [str(name) for name in datasets.get_dataset_config_names(str(folder))])
        splits = [str(known) for known in datasets.get_dataset_split_names(str(folder), config)]
        if split not in splits:
            hint = did_you_mean(split, splits) or ";"
            raise UserError(
                f"'{source.data}@{source.revision}' has no split '{split}'{hint} its splits: {', '.join(splits)}"
            )
        loaded = datasets.load_dataset(str(folder), config, split=split)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many unrelated types
        problem, remedy = explain(error, source.data, "dataset")
        raise UserError(f"cannot load {name} from the hub ({problem}); {remedy}, or name a local file") from error
    _checked(f"'{name}'", 0, dict.fromkeys(loaded.column_names), required)
    for number, values in enumerate(loaded, 1):
        yield Row(f"row {number} of '{name}'", number, values)


def _known_config(source: Data, configs: Sequence[str]) -> str | None:
    """Return the configuration of a hub dataset, None where it has one that needs no name."""
    title, listed = f"'{source.data}@{source.revision}'", ", ".join(configs)
    if source.config is None:
        if len(configs) > 1 and "default" not in configs:
            raise UserError(f"{title} has several configurations; write config: with one of them: {listed}")
        return None
    if source.config not in configs:
        hint = did_you_mean(source.config, configs) or ";"
        raise UserError(f"{title} has no configuration '{source.config}'{hint} its configurations: {listed}")
    return source.config


def cell_text(row: Row, column: str) -> str:
    """Return a cell as text: numbers as JSON writes them, lists and objects as JSON, nothing for null and NaN.

    Raises:
        UserError: text that is no Unicode.
    """
    value = row.values[column]
    if isinstance(value, str):
        text = value
    elif value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    elif isinstance(value, bytes):
        raise UserError(f"column '{column}' in {row.title} holds bytes; store it as text")
    else:
        try:
            text = json.dumps(value, ensure_ascii=False)
        except (TypeError, ValueError):  # dates and decimals of Parquet
            text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"column '{column}' in {row.title} holds half a character (a lone surrogate); write it whole"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")
