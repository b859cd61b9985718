"""Where time, steps and tokens went: every stage once, with the rows that needed it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...runners.specs import KINDS
from .data import Cost
from .lineage import Lineage, Rows


@dataclass
class _Stage:
    seconds: float = 0.0
    steps: int = 0
    tokens: int = 0
    labels: dict[str, bool] = field(default_factory=dict)
    """Rows, and whether they are uncompressed."""


def costs(rows: Rows, lineage: Lineage) -> tuple[Cost, ...]:
    """Attribute stages to rows.

    A stage is known by its key; without the stages, by its exact seconds, which two stages never share by chance.
    """
    stages: dict[tuple[str, object], _Stage] = {}
    for row in rows:
        path = lineage.paths[row["stage_key"]]
        for kind in KINDS:
            seconds = float(row[f"seconds_{kind}"])
            name: object = path.get(kind) or ((seconds, row["seed"]) if kind != "evaluate" else row["stage_key"])
            if seconds == 0 and kind not in path:
                continue
            stage = stages.setdefault((kind, name), _Stage())
            stage.seconds = max(stage.seconds, seconds)
            # Of several ratios from one run, the last has all its steps.
            stage.steps = max(stage.steps, int(row.get(f"steps_{kind}", 0)))
            stage.tokens = max(stage.tokens, int(row.get(f"tokens_{kind}", 0)))
            stage.labels[row["shown"]] = row["method"] == "none"
    return tuple(
        Cost(kind, _needed_by(stage.labels), stage.seconds, stage.steps, stage.tokens)
        for (kind, _), stage in sorted(stages.items(), key=lambda item: KINDS.index(item[0][0]))
    )


def _needed_by(labels: dict[str, bool]) -> tuple[str, ...]:
    compressed = [label for label, uncompressed in labels.items() if not uncompressed]
    return tuple(compressed or labels)


def span(lineage: Lineage) -> tuple[str, ...]:
    """Return when the first stage began and the last one ended; empty without stages."""
    records = [record for key in lineage.keys if (record := lineage.stage(key)) is not None]
    if not records:
        return ()
    return min(record.started_at for record in records), max(record.ended_at for record in records)
