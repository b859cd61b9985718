"""Datasets by name: where their records come from, what they must contain, and how that is checked.

Records come from local files, ``DIR/NAME/SPLIT.jsonl.gz`` (or ``.jsonl``), or from the hub at a pinned revision. Their
identity is a *content hash*, over the required fields of all records in order; so a dataset has the same hash as a
compressed file, as a plain file and from the hub. What comes from the hub, or from its cache, is compared with it too.

A local file whose content is not the published one is an error. Whoever means to use a variant of their own with the
published number of records says so with a file ``SPLIT.sha256`` beside it that holds the variant's content hash (the
error prints it); that hash then goes into every record of results.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import sys
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError, unknown
from ...foundation.files import digest, open_regular
from ...models.hub import explain, fetch_snapshot, is_offline
from .choice_specs import choice_specs
from .specs import DatasetSpec
from .specs import specs as text_specs

specs: dict[str, DatasetSpec] = text_specs | choice_specs

MAX_BYTES, MAX_LINE_BYTES = 4 << 30, 64 << 20
"""Most bytes that a local file may hold, unpacked, in all and in a line."""

REVISIONS_VARIABLE = "LOWRANK_BENCH_REVISIONS"
"""Environment variable that names commits of hub datasets: ``stereoset=<40 digits>,crows_pairs=<40 digits>``."""


@dataclass(frozen=True)
class Rows:
    """Records of one split, their content hash and their origin (``local:...`` or ``hub:ID@REVISION/SPLIT``)."""

    rows: list[dict[str, Any]]
    sha256: str
    source: str


def content_sha256(rows: Iterable[Mapping[str, Any]], fields: Iterable[str]) -> str:
    """Return the sha256 over the given fields of all records in order, as canonical JSON."""
    names = list(fields)
    return digest([[row[name] for name in names] for row in rows])


def load_rows(name: str, split: str, data_dir: Path | None) -> Rows:
    """Return the records of one split, reduced to the dataset's required fields and checked.

    Args:
        name: a name in `specs`.
        split: one of the dataset's splits.
        data_dir: folder with local datasets, or None for the hub.

    Raises:
        UserError: unknown name or split; missing, truncated or malformed file (with the line); a record lacks a
            field; wrong number of records; content that is neither the published one nor declared as a variant; the
            hub cannot be read.
    """
    if name not in specs:
        raise unknown("dataset", name, specs)
    spec = specs[name]
    if split not in spec.splits:
        raise unknown("split", split, spec.splits, f" of dataset '{name}'")
    return _load_hub(spec, split) if data_dir is None else _load_local(spec, split, data_dir)


def find_file(name: str, split: str, data_dir: Path) -> Path:
    """Return the local file of one split; raise a `UserError` where there is none. Reads no content."""
    folder = data_dir / name
    if not data_dir.is_dir():
        raise UserError(f"no data folder '{data_dir}'; pass --data a folder that holds '{name}/{split}.jsonl.gz'")
    for suffix in (".jsonl.gz", ".jsonl"):
        path = folder / f"{split}{suffix}"
        if path.is_file():
            return path
    spec = specs[name]
    other = (
        f"leave out --data to load {spec.hub_id} from the hub" if spec.hub_id else f"see docs/data.md ({spec.origin})"
    )
    raise UserError(f"no file '{name}/{split}.jsonl.gz' in '{data_dir}'; put it there, or {other}")


def _load_local(spec: DatasetSpec, split: str, data_dir: Path) -> Rows:
    path = find_file(spec.name, split, data_dir)
    rows = [_checked(row, spec, f"line {number} of '{path}'") for number, row in read_lines(path)]
    _check_count(rows, spec, split, f"'{path}'")
    actual, expected = content_sha256(rows, spec.fields), spec.splits[split].sha256
    if expected is not None and actual != expected:
        _check_variant(path, split, actual, expected)
    return Rows(rows, actual, f"local:{spec.name}/{path.name}")


def read_lines(path: Path) -> Iterable[tuple[int, Any]]:
    """Yield (line number from 1, parsed JSON) of a .jsonl or .jsonl.gz file; blank lines are skipped."""
    number = 0
    total = 0
    try:
        with open_regular(path) as raw:
            file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            # One more than allowed: enough to notice a longer line without reading all of it.
            while line := file.readline(MAX_LINE_BYTES + 1):
                number, total = number + 1, total + len(line)
                if len(line) > MAX_LINE_BYTES or total > MAX_BYTES:
                    most = f"a line of {MAX_LINE_BYTES:,}" if total <= MAX_BYTES else f"{MAX_BYTES:,}"
                    raise UserError(f"'{path}' has more than {most} bytes at line {number}; fetch the file again")
                if line.strip():
                    yield number, json.loads(line.decode("utf-8"))
    except RecursionError as error:
        raise UserError(f"line {number} of '{path}' is nested too deeply; fetch the file again") from error
    except json.JSONDecodeError as error:
        raise UserError(f"line {number} of '{path}' is not JSON ({error.msg}); fetch the file again") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text after line {number}; fetch the file again") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"line {number} of '{path}' cannot be read ({error}); fetch the file again") from error
    except (EOFError, zlib.error) as error:
        raise UserError(f"'{path}' is damaged or cut off after line {number}; fetch the file again") from error
    except OSError as error:  # gzip.BadGzipFile among them
        raise UserError(f"'{path}' cannot be read ({error}); fetch the file again") from error


def _checked(row: Any, spec: DatasetSpec, source: str) -> dict[str, Any]:
    if not isinstance(row, Mapping):
        raise UserError(f"{source} is not a JSON object; a {spec.name} record has the fields {', '.join(spec.fields)}")
    missing = [name for name in spec.fields if name not in row]
    if missing:
        raise UserError(
            f"{source} lacks the field '{missing[0]}'; a {spec.name} record has the fields {', '.join(spec.fields)}"
        )
    return {name: row[name] for name in spec.fields}


def _check_count(rows: list[dict[str, Any]], spec: DatasetSpec, split: str, source: str) -> None:
    expected = spec.splits[split].records
    if not rows:
        raise UserError(f"{source} holds no records; fetch {spec.hub_id} ({split}) again")
    if expected is not None and len(rows) != expected:
        raise UserError(
            f"{source} holds {len(rows):,} records but {spec.name}/{split} has {expected:,}; fetch it again, and use "
            "--limit to evaluate fewer problems"
        )


def _check_variant(path: Path, split: str, actual: str, expected: str) -> None:
    declared = path.with_name(f"{split}.sha256")
    words = declared.read_text(encoding="utf-8").split() if declared.is_file() else []
    if words[:1] != [actual]:
        raise UserError(
            f"'{path}' is not the published data (content hash {actual}, expected {expected}); fetch it again, or "
            f"write {actual} into '{declared}' to use it as a variant of your own"
        )


def pinned_revision(spec: DatasetSpec) -> str:
    """Return the commit of a dataset's hub repository: the user's from `REVISIONS_VARIABLE`, else the spec's own.

    Raises:
        UserError: there is none, or the variable cannot be read. A branch name is no identity.
    """
    for part in filter(None, os.environ.get(REVISIONS_VARIABLE, "").split(",")):
        name, _, commit = (text.strip() for text in part.partition("="))
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise UserError(f"{REVISIONS_VARIABLE} has '{part}'; write NAME=COMMIT with a commit of 40 digits")
        if name == spec.name:
            return commit
    if spec.revision is None:
        raise UserError(
            f"no commit of {spec.hub_id} has been verified for this version; name one with "
            f"{REVISIONS_VARIABLE}={spec.name}=<40 digits>, or pass --data DIR with local files of '{spec.name}'"
        )
    return spec.revision


def _snapshot(spec: DatasetSpec, revision: str) -> str:
    """Return the local folder of a dataset's commit, downloaded if missing: the configurations' own folders alone.

    Most repositories have a folder per configuration; of another one everything is downloaded.
    """
    patterns = (*(f"{config}/*" for config in spec.configs), "*.md", "*.yaml") if spec.configs else None
    folder = fetch_snapshot(spec.hub_id, revision, "dataset", patterns)
    if all((folder / config).is_dir() for config in spec.configs):
        return str(folder)
    return str(fetch_snapshot(spec.hub_id, revision, "dataset", None))


def _load_hub(spec: DatasetSpec, split: str) -> Rows:
    if not spec.hub_id:
        raise UserError(
            f"'{spec.name}' is not read from the hub; pass --data DIR with '{spec.name}/{split}.jsonl.gz' "
            f"(docs/data.md; {spec.origin})"
        )
    revision = pinned_revision(spec)
    import datasets  # slow to import, and not needed for local files

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    entry = spec.splits[split]
    hub_split = entry.hub_split or split
    rows: list[dict[str, Any]] = []
    source = f"{spec.hub_id}@{revision}/{hub_split}"
    files = {hub_split: spec.data_files} if spec.data_files else None
    folder = ""
    for config in spec.configs or (None,):
        try:
            if entry.head is None:
                # Without a connection, load_dataset(revision=X) takes the newest cached revision, whatever X is
                # (datasets issue 7928); the files of a snapshot are those of its commit.
                folder = folder or _snapshot(spec, revision)
                loaded = datasets.load_dataset(folder, config, split=hub_split, data_files=files)
            else:
                loaded = datasets.load_dataset(
                    spec.hub_id, config, split=hub_split, revision=revision, data_files=files, streaming=True
                ).take(entry.head)
            records = loaded if spec.from_hub is None else (spec.from_hub(row, config) for row in loaded)
            rows.extend(_checked(row, spec, f"a record of {source}") for row in records)
        except UserError:
            raise
        except Exception as error:  # the hub client raises many unrelated types for "cannot reach it"
            problem, remedy = explain(error, spec.hub_id, "dataset")
            if entry.head is not None and is_offline():
                problem = "it is streamed and never kept on this machine, and HF_HUB_OFFLINE forbids asking the hub"
            raise UserError(
                f"cannot load {source} from the hub ({problem}); {remedy}, or pass --data DIR with "
                f"'{spec.name}/{split}.jsonl.gz' to use local files"
            ) from error
    _check_count(rows, spec, split, source)
    actual = content_sha256(rows, spec.fields)
    # A commit that the user named may hold other data on purpose.
    if revision == spec.revision and entry.sha256 not in (None, actual):
        raise UserError(
            f"what was loaded as {source} is not the published data (content hash {actual}, expected {entry.sha256}); "
            f"name another commit with {REVISIONS_VARIABLE}, or pass --data DIR"
        )
    return Rows(rows, actual, f"hub:{source}")
