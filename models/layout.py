"""What the ``quantization_config`` of a factorised checkpoint says, as plain data that every loader reads alike.

Imports no torch, so that loaders of other engines can use it. See `checkpoint` for the meaning of the fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..foundation.errors import UserError

LOWRANK = "lowrank"
VERSION = 1
_AGAIN = "make or copy the checkpoint again"


@dataclass(frozen=True)
class Layout:
    """Which modules are factorised, and how.

    Attributes:
        ranks: rank of every factorised module by dotted name, owners of shared factors before those that use them.
        shared: owner of the first factor, by module that has none of its own.
        added_bias: modules with a bias that their dense form lacks.
        dense: linear layers that stayed dense.
        embeddings: the factorised embedding among them, with the name of the output head that shares its factors; empty
            for none.
        guard: name of the empty tensor that keeps other loaders from filling factors with noise; empty for none.
    """

    ranks: Mapping[str, int]
    shared: Mapping[str, str] = field(default_factory=dict)
    added_bias: Sequence[str] = ()
    dense: Sequence[str] = ()
    guard: str = ""
    embeddings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Layout:
        """Read the plain data of ``quantization_config``.

        Raises:
            UserError: another version, or fields that contradict each other; names the module.
        """
        version = config.get("version")
        if type(version) is not int or version != VERSION:
            raise UserError(
                f"the checkpoint has layout version {str(version)[:20]} of '{LOWRANK}', this lowrank-bench reads "
                f"version {VERSION}; install the lowrank-bench that wrote it"
            )
        ranks = config.get("ranks")
        if not isinstance(ranks, Mapping) or not ranks or any(type(r) is not int or r < 1 for r in ranks.values()):
            raise UserError(f"config.json names no rank for each factorised module; {_AGAIN}")
        shared, added = config.get("shared") or {}, config.get("added_bias") or ()
        dense, guard = config.get("dense") or (), config.get("guard") or ""
        if not isinstance(shared, Mapping) or not _are_names(shared.values()):
            raise UserError(f"the quantization_config.shared of config.json is no object of module names; {_AGAIN}")
        for field_name, names in (("added_bias", added), ("dense", dense)):
            if not isinstance(names, (list, tuple)) or not _are_names(names):
                raise UserError(
                    f"the quantization_config.{field_name} of config.json is no list of module names; {_AGAIN}"
                )
        if not isinstance(guard, str):
            raise UserError(f"the quantization_config.guard of config.json is no tensor's name; {_AGAIN}")
        for name, owner in shared.items():
            if name not in ranks or owner not in ranks or owner in shared or ranks[name] != ranks[owner]:
                raise UserError(
                    f"config.json lets '{name}' share the first factor of '{owner}', which are not two factorised "
                    f"modules of one rank; {_AGAIN}"
                )
        for name in added:
            if name not in ranks:
                raise UserError(f"config.json adds a bias to '{name}', which is not factorised; {_AGAIN}")
        embeddings = config.get("embeddings") or {}
        usable = isinstance(embeddings, Mapping) and _are_names(embeddings.values())
        if not usable or not embeddings.keys() <= ranks.keys():
            raise UserError(
                f"the quantization_config.embeddings of config.json is no object of factorised modules; {_AGAIN}"
            )
        order = sorted(ranks, key=lambda name: name in shared)  # stable: owners first
        return cls(
            {name: ranks[name] for name in order},
            dict(shared),
            tuple(added),
            tuple(dense),
            guard,
            dict(embeddings),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plain data that goes into ``config.json``."""
        return {
            "quant_method": LOWRANK,
            "version": VERSION,
            "ranks": dict(self.ranks),
            "shared": dict(self.shared),
            "added_bias": list(self.added_bias),
            "dense": list(self.dense),
            "guard": self.guard,
            **({"embeddings": dict(self.embeddings)} if self.embeddings else {}),
        }

    def tensors(self) -> dict[str, int]:
        """Return the name of every factor on disk and the place of the rank in its shape."""
        first = {f"{name}.lr_a": 0 for name in self.ranks if name not in self.shared}
        return first | {f"{name}.lr_b": 1 for name in self.ranks}


def check_tensors(layout: Layout, shapes: Mapping[str, Sequence[int]], folder: str) -> None:
    """Check that every announced tensor exists with the announced rank.

    Args:
        layout: what ``config.json`` announces.
        shapes: tensor shapes by name, as found in the safetensors files.
        folder: named in the error.

    Raises:
        UserError: a missing tensor, one that is not announced, or a rank that does not fit, by name.
    """
    for tensor in shapes:
        name, _, factor = tensor.rpartition(".")
        if factor in ("lr_a", "lr_b", "lr_bias") and name not in layout.ranks:
            raise UserError(f"{folder} holds the tensor {tensor} but config.json names no rank for {name}; {_AGAIN}")
    expected = {**layout.tensors(), **{f"{name}.lr_bias": None for name in layout.added_bias}}
    for tensor, axis in expected.items():
        if tensor not in shapes:
            raise UserError(f"{folder} lacks the tensor {tensor}; {_AGAIN}")
        rank = layout.ranks[tensor.rpartition(".")[0]]
        shape = tuple(shapes[tensor])
        if len(shape) != (1 if axis is None else 2):
            raise UserError(f"{folder}: the tensor {tensor} has {len(shape)} dimensions; {_AGAIN}")
        if axis is not None and shape[axis] != rank:
            raise UserError(
                f"{folder}: the tensor {tensor} has shape {shape} but config.json says rank {rank}; {_AGAIN}"
            )
    if layout.guard and layout.guard.removesuffix(".weight") not in layout.ranks:
        raise UserError(
            f"the quantization_config.guard of config.json in {folder} is no weight of a factorised module; {_AGAIN}"
        )
    if layout.guard in shapes and 0 not in shapes[layout.guard]:
        raise UserError(f"{folder}: the tensor {layout.guard} is the guard and must be empty; {_AGAIN}")


def _are_names(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
