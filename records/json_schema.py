"""The schema of a record as JSON Schema, published as docs/records.schema.json."""

from __future__ import annotations

import json
from typing import Any

from .schema import COLUMNS, SCHEMA_VERSION, Record

_OBJECTS = ("options", "tuned", "versions")
_TIMES = ("evaluated_at",)
_TEXT = "^([^=+\\-@\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*)?$"
"""No formula of a spreadsheet, no control characters."""


def record_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one record; a CSV file has its properties as columns, in any order."""
    schema: dict[str, Any] = Record.model_json_schema()
    for name, field in schema["properties"].items():
        field.pop("title", None)
        if name in _OBJECTS:
            field["contentMediaType"] = "application/json"
        elif name in _TIMES:
            field["format"] = "date-time"
        elif field["type"] == "string" and "enum" not in field:
            field["pattern"] = _TEXT
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"lowrank-bench record, version {SCHEMA_VERSION}",
        "description": (
            "One metric of one benchmark in one cell of a sweep. In CSV every property is a column, booleans are true "
            "and false, and ends of intervals may be inf and -inf. Beyond this schema 'bench leaderboard add' checks "
            "that low <= value <= high, ratio = params_original / params, kept = 1 / ratio, that method 'none' goes "
            "with the stages pretrained and finetuned, and that no two records describe the same measurement."
        ),
        "type": "object",
        "properties": {name: schema["properties"][name] for name in COLUMNS},
        "required": list(COLUMNS),
        "additionalProperties": False,
    }


def schema_text() -> str:
    """Return the schema as a file."""
    return json.dumps(record_schema(), indent=2, ensure_ascii=True) + "\n"
