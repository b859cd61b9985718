"""The question of a run, from its configuration and its records."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...foundation.files import read_limited
from ...foundation.plain import MAX_BYTES
from ...models.quantised.scheme import CONTROLS
from ...runners.stage_records import FinetuneRecord, RecoverRecord
from .data import Asked, Facts
from .lineage import Lineage

if TYPE_CHECKING:
    import pandas as pd

_PATHS = ("data", "out")
"""Keys of a configuration that say where things lie on one machine."""


def asked(run: Path, frame: pd.DataFrame, lineage: Lineage) -> Asked:
    """Return what was asked."""
    compressed = frame[~frame.method.isin(["none", *CONTROLS])]
    facts: list[tuple[str, str]] = [
        ("model", _list(frame.model)),
        ("parameters", _list(f"{n:,}" for n in frame.params_original)),
        ("task", _list(frame.task)),
        *_own_task(lineage),
        ("ratios", _list(f"{r:g}×" for r in sorted(compressed.ratio_target.unique()))),
        ("seeds", _list(str(s) for s in sorted(frame.seed.unique()))),
        ("benchmarks", _list(f"{r.variant}, n = {r.n}" for r in frame[frame.headline].itertuples())),
        ("states measured", _list(frame.stage)),
        ("first finetuning", _training(frame, lineage, "finetune")),
        ("after it, for every method", _training(frame, lineage, "recover")),
    ]
    methods: dict[tuple[str, str, str], None] = {}
    for row in frame[frame.method != "none"].itertuples():
        methods[str(row.label), str(row.method), str(row.options)] = None
    return Asked(tuple((name, value) for name, value in facts if value), tuple(sorted(methods)), _config(run))


def _own_task(lineage: Lineage) -> list[tuple[str, str]]:
    """Say what a task file's task is, and what was in its training data: a reader cannot look it up anywhere else."""
    summaries: dict[str, None] = {}
    cards: dict[str, None] = {}
    for path in lineage.paths.values():
        for key in path.values():
            record = lineage.stage(key)
            if record is None or not record.execution.task_file:
                continue
            # Read as plain data: an earlier version may have accepted what this one would refuse.
            summaries[str(json.loads(record.execution.task_file).get("summary", ""))] = None
            if isinstance(record, FinetuneRecord | RecoverRecord) and (card := record.result.data_card):
                left_out = {"held out for benchmarks": card.held_out, "left out as empty": card.empty}
                left_out |= {"left out as too long": card.dropped_too_long, "cut": card.cut_to_length}
                parts = [f"{card.rows:,} rows, {card.used:,} for training"]
                parts += [f"{count:,} {title}" for title, count in left_out.items() if count]
                if tokens := card.tokens:
                    parts.append(f"{tokens['min']:,g} to {tokens['max']:,g} tokens each, median {tokens['50%']:,g}")
                cards[", ".join(parts)] = None
    return [("what it is", _list(filter(None, sorted(summaries)))), ("training data", "; ".join(sorted(cards)))]


def _list(values: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values))


def _training(frame: pd.DataFrame, lineage: Lineage, kind: str) -> str:
    """Say how a training was done; the settings are in its stage, steps and tokens in the records too."""
    both = kind == "recover"
    used = frame[frame.method != "none"] if both else frame
    steps = used.steps_compress + used.steps_recover if both else used.steps_finetune
    counts = sorted({int(s) for s in steps if s})
    if not counts:
        return "none"
    text = f"{counts[0]:,} steps" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,} steps"
    if both and (used.steps_compress > 0).any():
        text += ", those that a method takes while compressing included"
    records = [lineage.stage(path[kind]) for path in lineage.paths.values() if kind in path]
    settings = [record.spec.train for record in records if isinstance(record, FinetuneRecord | RecoverRecord)]
    if settings:
        text += f", batch {_list(s.batch_size for s in settings)}"
        text += f", learning rate {_list(f'{s.learning_rate:g}' for s in settings)}"
        text += f", {_list(s.optimizer for s in settings)}, {_list(s.schedule for s in settings)}"
    return text


def _config(run: Path) -> str:
    path = (run if run.is_dir() else run.parent) / "sweep.yaml"
    try:
        values = yaml.safe_load(read_limited(path, MAX_BYTES))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return ""
    if not isinstance(values, dict):
        return ""
    return yaml.safe_dump({k: v for k, v in values.items() if k not in _PATHS}, sort_keys=True, allow_unicode=True)


def origin(frame: pd.DataFrame, lineage: Lineage) -> Facts:
    """Say what was run on what: a name and its values, with the number of evaluations where they differ."""
    ends = frame.drop_duplicates("stage_key")
    records = [record for key in lineage.evaluations if (record := lineage.stage(key)) is not None]
    hardware = [record.provenance.hardware for record in records]
    facts = [
        ("device", _counted(ends.device)),
        ("CPU threads of an evaluation", _counted(ends.threads)),
        ("cores", _counted(h.cores or "" for h in hardware)),
        ("GPUs", _counted(", ".join(h.gpus) or "none" for h in hardware)),
        ("system", _counted(h.system for h in hardware)),
        ("engine", _counted(ends.engine)),
        ("number format", _counted(ends.dtype)),
        ("isolation of generated code", _counted(i or "no code was executed" for i in ends.isolation)),
        ("versions", _counted(_versions(v) for v in ends.versions)),
        ("commit of lowrank-bench", _counted(c or "not known" for c in ends.git_commit)),
        ("largest memory of a stage", f"{frame.peak_memory_bytes.max() / 1e6:,.0f} MB"),
        ("model, sha256 or revision", _counted(ends.model_sha256)),
    ]
    for variant, rows in ends.groupby("variant", sort=False):
        facts.append((f"data of {variant}, sha256", _counted(rows.dataset_sha256)))
        if any(rows.prompt_sha256):
            facts.append((f"prompts of {variant}, sha256", _counted(rows.prompt_sha256)))
    return tuple((name, value) for name, value in facts if value)


def _versions(text: str) -> str:
    return ", ".join(f"{name} {version}" for name, version in json.loads(text).items() if version)


def _counted(values: Iterable[Any]) -> str:
    from collections import Counter

    counts = Counter(str(value) for value in values)
    if len(counts) <= 1:
        return next(iter(counts), "")
    return "; ".join(f"{value} ({count} evaluations)" for value, count in sorted(counts.items()))
