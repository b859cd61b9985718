"""The texts of a table's rows, so that different models have different ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_Line = Mapping[Any, Any]


def shown_labels(group: Sequence[_Line]) -> list[str]:
    """Return the text of the row that each record belongs to.

    Args:
        group: records of one table, by column.
    """
    recovered = {line["label"] for line in group if line["stage"] == "recovered"}
    labels = [
        f"uncompressed ({line['stage']})"
        if line["method"] == "none"
        else f"{line['label']}, not recovered"
        if line["stage"] == "compressed" and line["label"] in recovered
        else str(line["label"])
        for line in group
    ]
    labels = [
        f"{label} ({line['origin']})" if line.get("origin") else label
        for label, line in zip(labels, group, strict=True)
    ]
    labels = _tell_apart(labels, group, "options", _differing_options)
    labels = _tell_apart(labels, group, "steps_finetune", lambda steps, _: f"finetuned {steps:,} steps")
    # Only where two records still share a cell: a sweep's name says nothing about the model.
    cells = {(label, line["ratio_target"], line["seed"]) for label, line in zip(labels, group, strict=True)}
    if len(cells) < len(group):
        labels = [f"{label} ({line['sweep']})" for label, line in zip(labels, group, strict=True)]
    return labels


def _tell_apart(
    labels: Sequence[str], group: Sequence[_Line], column: str, text: Callable[[Any, set[Any]], str]
) -> list[str]:
    """Add a column's value to the labels whose records do not all have the same one.

    Args:
        labels: of the records.
        group: the records.
        column: which may differ.
        text: what to add, of a value and all values of the label.
    """
    values: dict[str, set[Any]] = {}
    for label, line in zip(labels, group, strict=True):
        values.setdefault(label, set()).add(line[column])
    return [
        f"{label} ({text(line[column], values[label])})" if len(values[label]) > 1 else label
        for label, line in zip(labels, group, strict=True)
    ]


def _differing_options(options: str, every: set[str]) -> str:
    """Return the options in which one row differs from others of its label."""
    others = [json.loads(text) for text in every]
    own = {k: v for k, v in json.loads(options).items() if any(k not in o or o[k] != v for o in others)}
    return ", ".join(f"{k}={v}" for k, v in own.items()) or "default options"
