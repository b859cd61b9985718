"""Where an entry's value comes from, in words for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_TRAINED = ("finetune", "compress", "recover")


@dataclass(frozen=True)
class Provenance:
    """What is known of the records behind one entry; several different values are joined with commas.

    Attributes:
        seeds, options: of the method.
        tokens: training tokens of finetune, compress, recover, means over seeds; ``steps`` likewise.
        budget: steps that the sweep allows after the first finetuning.
        hardware: device and threads of the evaluation.
        versions: of the package and the libraries that compute.
        commit: of lowrank_bench.
        isolation: how executed code was isolated.
        evaluated_at: when.
        stage_keys: evaluate stages: the folders with samples and everything else.
        run: name of the sweep, and of the submission.
    """

    seeds: str
    options: str
    tokens: str
    steps: str
    budget: str
    hardware: str
    versions: str
    commit: str
    isolation: str
    evaluated_at: str
    stage_keys: str
    run: str


def provenances(columns: Mapping[str, Sequence[Any]], rows: Sequence[int]) -> Provenance:
    """Return the provenance of an entry.

    Args:
        columns: the frame's columns as lists.
        rows: positions of the entry's records.
    """

    def column(name: str) -> list[str]:
        return [str(columns[name][i]) for i in rows]

    hardware = [
        f"{columns['device'][i]}" + (f", {t} threads" if (t := columns["threads"][i]) > 1 else ", 1 thread" * (t == 1))
        for i in rows
    ]
    days = sorted(column("evaluated_at"))
    return Provenance(
        seeds=_joined(str(seed) for seed in sorted(columns["seed"][i] for i in rows)),
        options=_joined(_pairs(text) for text in column("options")),
        tokens=" + ".join(_count(columns[f"tokens_{stage}"], rows) for stage in _TRAINED),
        steps=" + ".join(_count(columns[f"steps_{stage}"], rows) for stage in _TRAINED),
        budget=_joined(column("steps_budget")),
        hardware=_joined(hardware),
        versions=_joined(_pairs(text, " ") for text in column("versions")),
        commit=_joined(text[:12] or "not in a repository" for text in column("git_commit")),
        isolation=_joined(filter(None, column("isolation"))),
        evaluated_at=days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        stage_keys=_joined(column("stage_key")),
        run=_joined(column("sweep")),
    )


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _count(values: Sequence[Any], rows: Sequence[int]) -> str:
    return f"{sum(values[i] for i in rows) / len(rows):,.0f}"


@lru_cache(maxsize=4096)
def _pairs(text: str, joint: str = "=") -> str:
    return ", ".join(f"{name}{joint}{value}" for name, value in json.loads(text).items()) or "defaults"
