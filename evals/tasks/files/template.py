"""A commented task file to start from, made of the fields themselves, so that it never says what is not so."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from . import schema as parts

_WIDTH = 110
_ACTIVE: dict[str, dict[str, str]] = {
    "": {"name": "my-task", "summary": "what the task is, in one line"},
    "train": {"data": "train.jsonl"},
}
_KIND_NOTE = (
    "exact, match, regex, f1, rouge, bleu, json, code (answers are generated), choice or perplexity (likelihoods)."
)
_OWN: dict[str, type[BaseModel]] = {
    "json": parts.Json,
    "bleu": parts.Bleu,
    "choice": parts.Choice,
    "perplexity": parts.Perplexity,
}


def template() -> str:
    """Return the text of a new task file; with a file ``train.jsonl`` of prompts and completions beside it, it runs."""
    lines = [
        "# A task file of lowrank-bench: your data, your prompt, your benchmarks.",
        "# Check it:  bench task check THIS-FILE --model tiny",
        "# Run it:    bench run --task THIS-FILE --model tiny --methods svd --ratios 2",
        "",
    ]
    for name, field in parts.TaskFile.model_fields.items():
        if name == "train":
            lines += [*_comment(field.description or "", 0), "train:", *_fields(parts.Train, "train", 2)]
        elif name == "benchmarks":
            lines += [*_comment(field.description or "", 0), "benchmarks:", *_benchmark()]
        else:
            lines += _field(name, field, _ACTIVE[""].get(name), 0)
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _benchmark() -> list[str]:
    lines = ["  - name: exact", *_comment(_KIND_NOTE, 4), "    kind: exact"]
    for name, field in parts.GeneratedPart.model_fields.items():
        if name == "columns":
            lines += [*_comment(field.description or "", 4), "    # columns:", *_fields(parts.BenchmarkColumns, "", 6)]
        elif name != "name":
            lines += _field(name, field, None, 4)
    for kind, model in _OWN.items():
        base = parts.GeneratedPart if issubclass(model, parts.GeneratedPart) else parts.BenchmarkPart
        own = {name: field for name, field in model.model_fields.items() if name not in {*base.model_fields, "kind"}}
        lines += ["", f"  # A benchmark of kind {kind} has besides:", "  # - name: second", f"  #   kind: {kind}"]
        for name, field in own.items():
            lines += [line.replace("    #", "  #  ", 1) for line in _field(name, field, None, 4)]
    return lines


def _fields(model: type[BaseModel], path: str, indent: int) -> list[str]:
    lines = []
    for name, field in model.model_fields.items():
        if name == "columns":
            lines += [*_comment(field.description or "", indent), f"{' ' * indent}# columns:"]
            lines += _fields(parts.TrainColumns, "", indent + 2)
        else:
            lines += _field(name, field, _ACTIVE.get(path, {}).get(name), indent)
    return lines


def _field(name: str, field: FieldInfo, active: str | None, indent: int) -> list[str]:
    shown = field.alias or name
    value: Any = field.default if field.default is not PydanticUndefined else "…"
    text = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, allow_unicode=True).split("\n")[0]
    line = f"{shown}: {active}" if active is not None else f"# {shown}: {'' if value is None else text}".rstrip()
    return [*_comment(field.description or "", indent), " " * indent + line]


def _comment(text: str, indent: int) -> list[str]:
    return [f"{' ' * indent}# {line}" for line in textwrap.wrap(text, _WIDTH - indent)]


def field_table() -> str:
    """Return all fields as Markdown tables, for the documentation."""
    kinds = ", ".join(f"`{kind}`" for kind in parts.KINDS)
    groups: list[tuple[str, type[BaseModel], set[str]]] = [
        ("At the top", parts.TaskFile, set()),
        ("`train`", parts.Train, set()),
        ("`train.columns`", parts.TrainColumns, set()),
        ("An entry of `benchmarks`", parts.BenchmarkPart, set()),
        ("`columns` of a benchmark", parts.BenchmarkColumns, set()),
        ("Kinds whose answers are generated", parts.GeneratedPart, {*parts.BenchmarkPart.model_fields}),
    ]
    groups += [
        (f"`kind: {kind}`", model, {*parts.GeneratedPart.model_fields, "kind"}) for kind, model in sorted(_OWN.items())
    ]
    lines = ["| where | field | what it says |", "| --- | --- | --- |"]
    for path, model, known in groups:
        for name, field in model.model_fields.items():
            if name not in known:
                lines.append(
                    f"| {path} | `{field.alias or name}` | {(field.description or '').replace('|', chr(92) + '|')} |"
                )
        if model is parts.BenchmarkPart:
            lines.append(f"| {path} | `kind` | What it is, one of {kinds}. |")
    return "\n".join(lines)
