"""The data dictionary of the records, as a page of Markdown made from the schema.

Written by ``bench table --dictionary > docs/data-dictionary.md``; a test keeps the page and the schema together.
"""

from __future__ import annotations

from typing import Any, get_args, get_origin

import annotated_types

from .schema import (
    BUDGET,
    COLUMNS,
    KEY_COLUMNS,
    MAX_JSON,
    MAX_TEXT,
    SCHEMA_VERSION,
    TIMING_COLUMNS,
    Json,
    Name,
    Record,
    Text,
)

_TYPES = {int: ("integer", "int64"), float: ("number", "float64"), bool: ("boolean", "bool"), str: ("text", "string")}
_UNITS = {
    **{c: "s" for c in COLUMNS if c.startswith("seconds_")},
    **{c: "tokens" for c in COLUMNS if c.startswith("tokens_")},
    **{c: "steps" for c in COLUMNS if c.startswith("steps_")},
    **dict.fromkeys(("params", "params_original"), "parameters"),
    **dict.fromkeys(("bytes", "runtime_bytes", "peak_memory_bytes"), "bytes"),
    **dict.fromkeys(("value", "low", "high"), "metric's own"),
    **dict.fromkeys(("ratio_target", "ratio", "ratio_matrices"), "×"),
    **{"kept": "share", "confidence": "share", "n": "problems, windows or rounds", "threads": "threads"},
    "evaluated_at": "UTC, ISO 8601",
}
_INTRODUCTION = """# Data dictionary

<!-- Made by: bench table --dictionary > docs/data-dictionary.md -->

A run writes its records twice, as `results.csv` and as `results.parquet`: one row a cell, benchmark and metric, the
same columns in the same order. No package of ours is needed to read them:

```python
import pandas as pd

frame = pd.read_parquet("runs/tiny-toy-math/results.parquet")
frame[frame["headline"]].pivot_table(index="label", columns="ratio_target", values="value")
```

Every cell is filled: there are no missing values, and no NaN. Text columns are strings; `options`, `tuned` and
`versions` hold one JSON object each. In CSV, booleans are `true` and `false`, unbounded ends are `inf` and `-inf`,
numbers are written so that reading them gives the same number again.
"""


def data_dictionary() -> str:
    """Return the page: every column with type, unit, allowed values and meaning; key, timings, schema versions."""
    rows = [
        "| column | type | in Parquet | unit | allowed | key | meaning |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for column in COLUMNS:
        field = Record.model_fields[column]
        name, stored = _TYPES.get(field.annotation, _TYPES[str])  # type: ignore[arg-type]
        key = "key" if column in KEY_COLUMNS else "timing" if column in TIMING_COLUMNS else ""
        allowed = _allowed(column, field)
        rows.append(
            f"| `{column}` | {name} | {stored} | {_UNITS.get(column, '')} | {allowed} | {key} | {field.description} |"
        )
    return "\n".join([_INTRODUCTION, f"## Columns, schema version {SCHEMA_VERSION}", "", *rows, "", _ending()])


def _allowed(column: str, field: Any) -> str:
    if get_origin(field.annotation) is not None:  # the one Literal
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if column == "schema_version":
        return f"{SCHEMA_VERSION}"
    if column == "evaluated_at":
        return "a time that ends in `+00:00`"
    if field.annotation is bool:
        return "`true`, `false`"
    if field.annotation is str:
        return _allowed_text(field.metadata)
    bounds = []
    for constraint in field.metadata:
        if isinstance(constraint, annotated_types.Ge) and constraint.ge > -(2**63) + 1:  # type: ignore[operator]
            bounds.append(f"≥ {constraint.ge}")
        elif isinstance(constraint, annotated_types.Gt):
            bounds.append(f"> {constraint.gt}")
        elif isinstance(constraint, annotated_types.Lt):
            bounds.append(f"< {constraint.lt}")
    if column in ("value", "low", "high"):
        return "`low` ≤ `value` ≤ `high`; not NaN"
    return ", ".join(bounds) or "any"


def _allowed_text(metadata: list[Any]) -> str:
    def checks(kind: Any) -> list[Any]:
        constraints = []
        for part in kind.__metadata__:
            constraints += list(getattr(part, "metadata", [])) or [part]
        return constraints

    if metadata == checks(Json):
        return "JSON object, sorted keys, no spaces"
    if metadata == checks(Text):
        return "text, may be empty"
    assert metadata == checks(Name), metadata
    return "text"


def _ending() -> str:
    timings = ", ".join(f"`{column}`" for column in TIMING_COLUMNS)
    keys = ", ".join(f"`{column}`" for column in KEY_COLUMNS)
    return f"""## What holds between columns

- `ratio` is `params_original / params`, and `kept` is `1 / ratio`.
- `low` ≤ `value` ≤ `high`. Shares such as accuracies are in 0..1, never percent.
- `method` is `none` exactly where `stage` is `pretrained` or `finetuned`.
- Text is at most {MAX_TEXT:,} characters (JSON {MAX_JSON:,}), begins with none of `=` `+` `-` `@` (a spreadsheet
  would run it) and has no control, zero-width or direction characters. HTML is text and stays text.

## Key

Two rows of one file with the same {keys} describe the same measurement. Such a file is refused, with the numbers of the
two rows and the column in which they contradict each other.

## Timings

{timings} may differ between two runs that are otherwise equal.

## Schema versions

`schema_version` is {SCHEMA_VERSION}. It rises when a column is added, removed or changes its meaning. A program reads
the versions up to its own. A file of a later version is refused with a sentence that names both versions; the remedy is
to update `lowrank-bench`. A file of version 1 lacks `runtime_bytes`, `seconds_quantise` and `{BUDGET}`; reading it
fills them in: the parameters in the evaluation's dtype, 0, and `steps_compress + steps_recover`. One of version 1 or 2
lacks `tuned`, which is then empty. Within a version, a column may become stricter where that keeps out what no run
writes.
"""
