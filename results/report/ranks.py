"""Ranks of compressed models, layer by kind of matrix, from the compress stages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...foundation.files import open_regular, read_json
from ...runners.stage_records import CompressRecord
from ...runners.store.folders import MODEL_FOLDER, ratio_folder
from .data import Rank, RankMap
from .lineage import Lineage, Rows

_LAYER = re.compile(r"\.(\d+)\.")
Shape = tuple[int, int]
"""(m, n): rows and columns of a matrix."""


def rank_maps(rows: Rows, lineage: Lineage) -> tuple[RankMap, ...]:
    """Return one map for each set of rows that have the same ranks at a ratio; the smallest seed is given for all."""
    ranks_of: dict[tuple[str, float], dict[int, dict[str, Rank]]] = {}
    for row in rows:
        seeds = ranks_of.setdefault((row["shown"], row["ratio_target"]), {})
        key = lineage.paths[row["stage_key"]].get("compress")
        if key and row["seed"] not in seeds:
            seeds[row["seed"]] = _ranks(lineage, key, row["ratio_target"])
    maps: list[RankMap] = []
    for (label, ratio), every in ranks_of.items():
        seeds = {seed: ranks for seed, ranks in every.items() if ranks}
        if not seeds:
            continue
        seed = min(seeds)
        same = all(ranks == seeds[seed] for ranks in seeds.values())
        rank_map = _laid_out(label, ratio, seed, same, seeds[seed])
        for index, other in enumerate(maps):
            if replace(other, labels=rank_map.labels) == rank_map:
                maps[index] = replace(other, labels=(*other.labels, label))
                break
        else:
            maps.append(rank_map)
    return tuple(maps)


def layer_and_kind(name: str) -> tuple[str, str]:
    """Return layer and kind of a matrix by its dotted name: ``model.layers.3.mlp.up_proj`` is (``3``, ``up_proj``)."""
    match = _LAYER.search(name)
    return (match.group(1), name[match.end() :]) if match else ("", name)


def short(kinds: Iterable[str]) -> dict[str, str]:
    """Return the last part of each kind's dotted name, or the whole name where two would be the same."""
    kinds = list(dict.fromkeys(kinds))
    last = [kind.rpartition(".")[2] for kind in kinds]
    return {kind: part if last.count(part) == 1 else kind for kind, part in zip(kinds, last, strict=True)}


def layer_order(layer: str) -> tuple[bool, int]:
    """Sort layers by number, what is outside of layers last."""
    return layer == "", int(layer or 0)


def _ranks(lineage: Lineage, key: str, ratio: float) -> dict[str, Rank]:
    record = lineage.stage(key)
    if not isinstance(record, CompressRecord) or not record.result.has_report(ratio):
        return {}
    report = record.result.report(ratio)
    shapes: dict[str, Shape] = {}
    shared: set[str] = set()
    if stage := lineage.folder(key):
        folder = stage / ratio_folder(ratio) / MODEL_FOLDER
        shapes, shared = _shapes(folder), _shared(folder)
    rank_of = {}
    for name, rank in report.ranks.items():
        m, n = shapes.get(name, (0, 0))
        stored = rank * (m if name in shared else m + n)
        rank_of[name] = Rank(rank, min(m, n), stored / (m * n) if m and n else 0.0, name in shared)
    for name in report.dense:
        rank_of[name] = Rank(None, min(shapes.get(name, (0, 0))), 1.0)
    return rank_of


def _shapes(folder: Path) -> dict[str, Shape]:
    """Return the dense shape of every linear layer from the headers of a checkpoint's files; none are loaded."""
    tensors: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= _header(path)
    config = _quantization(folder)
    owners = config.get("shared") or {}
    shapes: dict[str, Shape] = {}
    for name, shape in tensors.items():
        module, _, part = name.rpartition(".")
        # lr_b is (m, r) and lr_a (r, n); a matrix that shares its first factor finds lr_a under the owner's name.
        if part == "lr_b":
            first = tensors.get(f"{owners.get(module, module)}.lr_a")
            if first:
                shapes[module] = shape[0], first[1]
        elif part == "weight" and len(shape) == 2:
            shapes[module] = shape[0], shape[1]
    return shapes


def _header(path: Path) -> dict[str, list[int]]:
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            # The length is the file's own claim, and a damaged file may claim any.
            if size > path.stat().st_size:
                return {}
            header = json.loads(file.read(size))
        return {name: list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _quantization(folder: Path) -> Mapping[str, Any]:
    try:
        settings = read_json(folder / "config.json").get("quantization_config") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    return settings if isinstance(settings, Mapping) else {}


def _shared(folder: Path) -> set[str]:
    return set(_quantization(folder).get("shared") or {})


def _laid_out(label: str, ratio: float, seed: int, same: bool, ranks: Mapping[str, Rank]) -> RankMap:
    positions = {layer_and_kind(name): rank for name, rank in ranks.items()}
    layers = tuple(sorted({layer for layer, _ in positions}, key=layer_order))
    kinds = sorted({kind for _, kind in positions}, key=kind_order)
    names = short(kinds)
    cells = tuple(tuple(positions.get((layer, kind)) for kind in kinds) for layer in layers)
    return RankMap((label,), ratio, seed, same, layers, tuple(names[kind] for kind in kinds), cells)


_USUAL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def kind_order(kind: str) -> tuple[int, str]:
    """Sort kinds as data flow through a layer, unknown ones behind by name."""
    last = kind.rpartition(".")[2]
    return (_USUAL.index(last) if last in _USUAL else len(_USUAL)), kind
