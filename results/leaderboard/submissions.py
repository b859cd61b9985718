"""Foreign records: checked line by line, kept under a hash of what they say."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ...foundation.errors import UserError, did_you_mean
from ...foundation.files import read_limited, write_atomic
from ...foundation.plain import read_input
from ...records.files import read_records
from ...records.metrics import is_perplexity
from ...records.schema import (
    COLUMNS,
    KEY_COLUMNS,
    SCHEMA_VERSION,
    TIMING_COLUMNS,
    Record,
    expected_columns,
    upgraded,
)
from ..tables.escape import clean

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES, MOST_IN_A_LINE = 200_000_000, 1 << 20
MOST_FAULTS = 50
LONGEST_TEXT = 200
_HASH = 12


@dataclass(frozen=True)
class Fault:
    """What is wrong in one line.

    Attributes:
        line: number of the line in the file, the header being 1; 0 for the whole file.
        column: where in it; empty for the whole line.
        message: what is wrong and what is allowed.
    """

    line: int
    column: str
    message: str

    def __str__(self) -> str:
        """Return ``line 7, value: …``."""
        position = f"line {self.line}" if self.line else "the file"
        return clean(f"{position}{f', {self.column}' if self.column else ''}: {self.message}")


class FaultyFile(UserError):
    """A file of records that was refused.

    Attributes:
        faults: all of them, by line.
    """

    def __init__(self, path: Path, faults: Sequence[Fault]) -> None:
        lines = len({fault.line for fault in faults})
        super().__init__(
            f"{path} was not added: {len(faults)} fault{'s' * (len(faults) > 1)} in {lines} line{'s' * (lines > 1)}; "
            "correct them and add the file again ('bench leaderboard schema' prints what is allowed)"
        )
        self.faults = tuple(faults)


@dataclass(frozen=True)
class Added:
    """What `add` did.

    Attributes:
        path: the stored file.
        records: how many it holds.
        new: whether it was not there before.
    """

    path: Path
    records: int
    new: bool


def add(path: Path, folder: Path) -> Added:
    """Check a file of records and store it under a hash of its content.

    The order of lines and columns does not matter: the same records are the same submission.

    Args:
        path: CSV in UTF-8 with the schema's columns.
        folder: where submissions lie; made if missing.

    Raises:
        FaultyFile: it has faults; nothing is stored.
        UserError: it cannot be read.
    """
    records = check(path)
    content = _content(records)
    stored = folder / f"{_name(content)}.csv"
    new = not stored.exists()
    if new:
        write_atomic(stored, content)
    return Added(stored, len(records), new)


def stored(folder: Path) -> dict[str, pd.DataFrame]:
    """Return the submissions in a folder by name, in order; none where the folder is missing.

    Raises:
        UserError: a file was changed after it was added.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is no folder of submissions; name the folder that bench leaderboard add wrote to")
    records = {}
    for path in sorted(folder.glob("submitted-*.csv")):
        if path.stem != _name(read_input(path, "submission", MOST_BYTES).decode("utf-8", "replace")):
            raise UserError(f"{path} was changed after it was added; delete it, and add what is right with its check")
        records[path.stem.replace("-", " ")] = read_records(path)
    return records


def check(path: Path) -> list[Record]:
    """Return the records of a foreign file.

    Raises:
        FaultyFile: with every fault of every line.
        UserError: the file is missing, is no CSV or too large.
    """
    lines = _lines(path)
    header = lines[0][1] if lines else []
    if faults := [*_version_faults(lines), *_header_faults(header, _versions(lines))]:
        raise FaultyFile(path, faults)
    faults, good = [], []
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            faults.append(Fault(number, "", f"{len(cells)} cells where the header has {len(header)}"))
            continue
        row = dict(zip(header, cells, strict=True))
        row_faults = _text_faults(number, row)
        try:
            record = Record.model_validate(upgraded(row))
        except ValidationError as error:
            # A column is named once: what is wrong with its text explains why the schema refuses it.
            columns = {fault.column for fault in row_faults}
            row_faults += [fault for fault in _schema_faults(number, error) if fault.column not in columns]
        else:
            row_faults += _sense_faults(number, record)
            good.append((number, record))
        faults += row_faults
    faults += _contradictions(good)
    if not lines[1:]:
        faults.append(Fault(0, "", "it has a header and no records"))
    if faults:
        raise FaultyFile(path, sorted(faults, key=lambda fault: (fault.line, fault.column)))
    return [record for _, record in good]


def _content(records: Sequence[Record]) -> str:
    lines = []
    for record in records:
        values = (getattr(record, column) for column in COLUMNS)
        lines.append(
            # repr of a float reads back as the same float, so equal values give equal text and one hash.
            [str(v).lower() if isinstance(v, bool) else repr(v) if isinstance(v, float) else v for v in values]
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(sorted(lines, key=lambda line: [str(cell) for cell in line]))
    return text.getvalue()


def _name(content: str) -> str:
    return f"submitted-{hashlib.sha256(content.encode()).hexdigest()[:_HASH]}"


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Return the lines that are not empty with their numbers."""
    if path.suffix.lower() != ".csv" or not path.is_file():
        raise UserError(f"{path} is no CSV file; name a file of records such as runs/tiny-toy-math/results.csv")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES // 10**6} MB; split it")
        # A byte order mark, as spreadsheets write it, would become part of the first column's name.
        text = read_limited(path, MOST_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its permissions") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FaultyFile(path, [Fault(line, "", "this is not UTF-8; save the file as CSV in UTF-8")]) from None
    first = text.partition("\n")[0]
    # Else the header would read as a single column, and every column of the schema would be reported missing.
    if first.count(";") > first.count(","):
        raise FaultyFile(path, [Fault(1, "", "columns are separated by semicolons; save the file with commas")])
    if (longest := max(map(len, text.split("\n")))) > MOST_IN_A_LINE:
        raise UserError(f"{path} has a line of {longest:,} characters; at most {MOST_IN_A_LINE:,} are allowed")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, before = [], 0
    try:
        for cells in reader:
            if cells:
                # A quoted cell may span lines: `line_num` is the record's last one, and a fault names its first.
                lines.append((before + 1, cells))
            before = reader.line_num
    except csv.Error as error:
        raise FaultyFile(
            path, [Fault(before + 1, "", f"this is not CSV ({error}); quotes must come in pairs")]
        ) from None
    return lines


def _versions(lines: Sequence[tuple[int, list[str]]]) -> set[str]:
    """Return the schema versions that a file's lines name."""
    if not lines or "schema_version" not in lines[0][1]:
        return set()
    index = lines[0][1].index("schema_version")
    return {cells[index].strip() for _, cells in lines[1:] if len(cells) > index}


def _version_faults(lines: Sequence[tuple[int, list[str]]]) -> list[Fault]:
    """Look at the version before the columns: another version may have others."""
    if not lines or "schema_version" not in lines[0][1]:
        return []
    index = lines[0][1].index("schema_version")
    # Reversed, so that the line of each version is the first one that names it.
    versions = {cells[index].strip(): number for number, cells in reversed(lines[1:]) if len(cells) > index}
    return [
        Fault(
            number, "schema_version", f"it is {version[:20]}, this version reads {SCHEMA_VERSION}; update lowrank-bench"
        )
        for version, number in versions.items()
        if version.isdecimal() and not 1 <= int(version) <= SCHEMA_VERSION
    ]


def _header_faults(header: Sequence[str], versions: set[str]) -> list[Fault]:
    if not header:
        return [Fault(0, "", "it is empty; its first line must name the columns")]
    faults = []
    for name in dict.fromkeys(header):
        if name not in COLUMNS:
            faults.append(Fault(1, _short(name) or "(no name)", f"no such column{did_you_mean(name[:60], COLUMNS)}"))
        elif header.count(name) > 1:
            faults.append(Fault(1, name, "this column is there twice"))
    missing = [name for name in expected_columns(versions) if name not in header]
    faults += [Fault(1, name, f"this column is missing: {Record.model_fields[name].description}") for name in missing]
    return faults


def _text_faults(number: int, row: dict[str, str]) -> list[Fault]:
    faults = []
    for column, text in row.items():
        if not text.isprintable():
            bad = next(c for c in text if not c.isprintable())
            message = f"'{_short(text)}' has the invisible character U+{ord(bad):04X}; only printable text is allowed"
            faults.append(Fault(number, column, message))
        elif len(text) > LONGEST_TEXT and column not in ("options", "tuned", "versions"):
            message = f"'{_short(text)}' has {len(text)} characters; at most {LONGEST_TEXT} are allowed"
            faults.append(Fault(number, column, message))
    return faults


def _schema_faults(number: int, error: ValidationError) -> list[Fault]:
    faults = []
    for detail in error.errors(include_url=False):
        column = ".".join(map(str, detail["loc"]))
        message = detail["msg"].removeprefix("Value error, ")
        value = detail.get("input")
        if column and isinstance(value, str) and f"'{value[:30]}'" not in message:
            message = f"'{_short(value)}': {message}"
        faults.append(Fault(number, column, message))
    return faults


def _sense_faults(number: int, record: Record) -> list[Fault]:
    """Return what no schema of single columns can say."""
    faults = []

    def fault(column: str, message: str) -> None:
        faults.append(Fault(number, column, message))

    if is_perplexity(record.metric) and record.value < 1:
        fault("value", f"{record.value:g} is no perplexity; the least is 1")
    expected = _direction(record.metric)
    if expected is not None and record.higher_is_better is not expected:
        fault(
            "higher_is_better",
            f"it is {str(not expected).lower()}, and for {record.metric} it must be {str(expected).lower()}",
        )
    if record.method == "none" and record.params != record.params_original:
        fault("params", f"{record.params} of an uncompressed model must be params_original, {record.params_original}")
    return faults


def _direction(metric: str) -> bool | None:
    """Return whether more is better, where the metric's name leaves no doubt."""
    if metric.partition("/")[0] in ("accuracy", "acc", "acc_norm", "exact_match") or metric.startswith("pass@"):
        return True
    return False if is_perplexity(metric) else None


def _contradictions(good: Iterable[tuple[int, Record]]) -> list[Fault]:
    faults = []
    seen: dict[tuple[Any, ...], tuple[int, Record]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for number, record in good:
        line, size = sizes.setdefault(record.model_sha256, (number, record.params_original))
        if size != record.params_original:
            message = f"{record.params_original} contradicts line {line}, where the same model has {size}"
            faults.append(Fault(number, "params_original", message))
        key = tuple(getattr(record, column) for column in KEY_COLUMNS)
        if key not in seen:
            seen[key] = (number, record)
            continue
        first, other = seen[key]
        changed = [c for c in COLUMNS if c not in TIMING_COLUMNS and getattr(other, c) != getattr(record, c)]
        if not changed:
            faults.append(Fault(number, "", f"this repeats line {first}; leave one of them out"))
        else:
            values = _printable(record, changed[0]), _printable(other, changed[0])
            message = f"{values[0]} contradicts line {first}, where it is {values[1]}"
            faults.append(Fault(number, changed[0], f"{message}; both describe the same measurement"))
    return faults


def _printable(record: Record, column: str) -> str:
    return _short(str(getattr(record, column)))


def _short(text: str) -> str:
    return clean(text if len(text) <= 40 else f"{text[:39]}…")
