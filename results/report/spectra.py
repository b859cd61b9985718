"""Energy of the spectra that the fits found, by kind of matrix; only the spectra are read, never the factors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ...foundation.files import read_json
from ...runners.store.files import KEPT
from .data import Energy, Spectra
from .lineage import Lineage, Rows
from .ranks import kind_order, layer_and_kind, short

POINTS = 41
"""Places at which a curve is kept."""

_ENDING = ".spectrum"
Array = Any


def spectra(rows: Rows, lineage: Lineage) -> tuple[Spectra, ...]:
    """Return the spectra of each kind of fit, of the smallest seed that has one."""
    users: dict[str, dict[str, None]] = {}
    seeds: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        key = lineage.paths[row["stage_key"]].get("fit")
        if key:
            users.setdefault(key, {})[row["shown"]] = None
            seeds.setdefault(key, row["seed"])
    results: list[Spectra] = []
    for key, labels in users.items():
        if any(set(labels) <= set(other.labels) for other in results):
            continue  # another seed of the same fit
        folder = lineage.folder(key)
        if folder is None:
            continue
        kinds = _kinds(folder)
        same = [
            i for i, other in enumerate(results) if other.kinds == kinds
        ]  # fits may differ in what a policy measured
        if kinds and same:
            results[same[0]] = replace(results[same[0]], labels=(*results[same[0]].labels, *labels))
        elif kinds:
            results.append(Spectra(_name(folder), tuple(labels), seeds[key], kinds))
    return tuple(results)


def _name(folder: Path) -> str:
    try:
        return str(read_json(folder / "fit.json").get("factors", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def _kinds(folder: Path) -> tuple[Energy, ...]:
    grouped: dict[str, list[Array]] = {}
    try:
        for path in sorted([*folder.glob("factors*.safetensors"), *folder.glob(f"{KEPT}factors*.safetensors")]):
            with safe_open(path, framework="np") as tensors:
                for key in sorted(tensors.keys()):
                    # What a rank policy measured lies beside the factors and is no spectrum of theirs.
                    if not key.endswith(_ENDING) or key.startswith("policy."):
                        continue
                    values = np.asarray(tensors.get_tensor(key), dtype=np.float64)
                    if values.ndim == 1 and len(values) and np.isfinite(values).all() and values.any():
                        grouped.setdefault(layer_and_kind(key.removesuffix(_ENDING))[1], []).append(values)
    except (OSError, SafetensorError, TypeError, ValueError):
        return ()
    kinds = sorted(grouped, key=kind_order)
    names = short(kinds)
    return tuple(_energy(names[kind], grouped[kind]) for kind in kinds)


def _energy(kind: str, values: list[Array]) -> Energy:
    shares = np.linspace(0, 1, POINTS)
    curves, ninety = [], []
    for spectrum in values:
        # With the leading 0 an index is a number of parts, for the curve and for the 90 % below.
        energy = np.concatenate([[0.0], np.cumsum(spectrum**2)])
        energy /= energy[-1]
        axis = np.linspace(0, 1, len(energy))
        curves.append(np.interp(shares, axis, energy))
        ninety.append(int(np.searchsorted(energy, 0.9)) / len(spectrum))
    stack = np.stack(curves)
    median, low, high = (tuple(float(v) for v in part) for part in (np.median(stack, 0), stack.min(0), stack.max(0)))
    full = max(len(spectrum) for spectrum in values)
    shares_kept = tuple(float(share) for share in shares)
    return Energy(kind, len(values), full, shares_kept, median, low, high, float(np.median(ninety)))
