"""A rounded dense model as a folder in the format ``pack-quantized`` of compressed-tensors.

transformers (with the package ``compressed-tensors``) and vLLM load such folders. The packed file has the integers as
the format lays them out (`packing`); the tensors' names and ``config.json`` are made here
(``compressed_tensors/quantization/quant_config.py`` and ``quant_args.py``, version 0.17).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from ...foundation.errors import UserError
from ...foundation.files import new_folder
from ..export import copy_others
from ..loading import load_skeleton
from ..shards import Promise, write_shards
from ..version4 import add_version_4_keys
from .folder import scheme_of
from .model import CORRECTION_A, PACKED, SCALE, SHAPE
from .rounding import GROUP, group_for
from .scheme import PACKED_FILE, Scheme

_WEIGHT = ".weight"
_CONFIG = "config.json"


def export_packed(folder: Path, out: Path) -> int:
    """Write a control's integers and scales as a checkpoint of compressed-tensors; every other file is copied.

    Tensors have the names of the dequantised checkpoint. Scales get the dtype of its weights, which changes no value.

    Args:
        folder: the dequantised checkpoint of a control; the packed file is beside it.
        out: new folder.

    Returns:
        Bytes of the weights written, headers included.

    Raises:
        UserError: the folder is no control's, or holds what the format has no room for: factors, a correction, a
            rounded embedding, groups that do not divide a row, matrices that are stored under
            other names than the model's.
    """
    file = folder.parent / PACKED_FILE
    if not file.is_file():
        raise UserError(
            f"{folder} is no model that was only rounded ({PACKED_FILE} is not beside it); name a control of a run, "
            "such as runs/tiny-toy-math:rtn-int4@1"
        )
    scheme = scheme_of(file)
    with ExitStack() as files:
        packed = files.enter_context(safe_open(file, framework="pt"))
        modules = _rounded_modules(folder, set(packed.keys()))
        groups, dense = _groups(folder, scheme, {name: _columns(packed, name) for name in modules})
        shards = [
            files.enter_context(safe_open(shard, framework="pt")) for shard in sorted(folder.glob("*.safetensors"))
        ]
        with new_folder(out) as part:
            promises = [promise for shard in shards for promise in _promises(shard, packed, modules)]
            written = {promise.name for promise in promises}
            if missing := [name for name in modules if f"{name}.{PACKED}" not in written]:
                raise UserError(
                    f"the checkpoint {folder} has no tensor {missing[0]}{_WEIGHT}: it stores that matrix under another "
                    "name, or in one tensor with others, and cannot be exported so; serve the folder as it is"
                )
            copy_others(folder, part, (_CONFIG,))
            write_shards(promises, part)
            config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
            config["quantization_config"] = _announcement(scheme, groups, dense)
            (part / _CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            add_version_4_keys(part)
            return sum(shard.stat().st_size for shard in part.glob("*.safetensors"))


def _rounded_modules(folder: Path, names: set[str]) -> list[str]:
    """Return the modules whose weights a packed file has as integers."""
    if any(name.endswith(".lr_a") for name in names):
        raise UserError(
            f"{folder} is factorised, and compressed-tensors has no factors; name a control such as rtn-int4, or serve "
            "the folder as it is"
        )
    if any(name.endswith(f".{CORRECTION_A}") for name in names):
        raise UserError(
            f"{folder} has corrections, and compressed-tensors has no room for them; name a control without, such as "
            "rtn-int4"
        )
    return sorted(name.removesuffix(f".{PACKED}") for name in names if name.endswith(f".{PACKED}"))


def _columns(packed: Any, module: str) -> int:
    return int(packed.get_tensor(f"{module}.{SHAPE}")[1])


def _groups(folder: Path, scheme: Scheme, columns: dict[str, int]) -> tuple[dict[int, list[str]], list[str]]:
    """Return the rounded modules by the columns that share a scale, and the linear layers that stay dense."""
    linears = [name for name, module in load_skeleton(folder).named_modules() if isinstance(module, nn.Linear)]
    groups: dict[int, list[str]] = defaultdict(list)
    for module, width in columns.items():
        group = group_for(width, scheme.group)
        if module not in linears:
            raise UserError(
                f"{module} is an embedding, and compressed-tensors rounds linear layers alone; use a control without "
                "embeddings=true"
            )
        if width % group:
            common = math.gcd(*columns.values())
            divisors = [size for size in range(8, GROUP + 1, 8) if common % size == 0]
            advice = f"; use a control with group={divisors[-1]}" if divisors else ""
            raise UserError(
                f"{module} has {width} columns, and compressed-tensors has no group of {group} there{advice}"
            )
        groups[group].append(module)
    return dict(groups), [name for name in linears if name not in columns]


def _promises(shard: Any, packed: Any, modules: list[str]) -> Iterator[Promise]:
    """Yield the tensors of one file of a checkpoint, with integers and scales in place of rounded weights."""
    rounded = set(modules)
    for name in shard.keys():  # noqa: SIM118
        module = name.removesuffix(_WEIGHT)
        shape = tuple(shard.get_slice(name).get_shape())
        # An empty slice has the dtype without reading the data; a tensor without dimensions cannot be sliced.
        dtype = (shard.get_slice(name)[:0] if shape else shard.get_tensor(name)).dtype
        if module == name or module not in rounded:
            yield Promise(name, shape, dtype, partial(shard.get_tensor, name))
            continue
        for part in (PACKED, SCALE, SHAPE):
            stored = f"{module}.{part}"
            first: Tensor = packed.get_slice(stored)[:0]
            kind = dtype if part == SCALE else first.dtype
            shape = tuple(packed.get_slice(stored).get_shape())
            yield Promise(stored, shape, kind, partial(_cast, packed, stored, kind))


def _cast(packed: Any, name: str, dtype: Any) -> Tensor:
    tensor: Tensor = packed.get_tensor(name)
    return tensor.to(dtype)


def _announcement(scheme: Scheme, groups: dict[int, list[str]], dense: list[str]) -> dict[str, Any]:
    """Return the field ``quantization_config``: what is packed how, and which linear layers are not."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": dense,
        "config_groups": {
            f"group_{number}": {
                # One group is of every linear layer that is not ignored; several have to name theirs.
                "targets": ["Linear"] if len(groups) == 1 else names,
                "weights": {
                    "num_bits": scheme.bits,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": group,
                },
            }
            for number, (group, names) in enumerate(sorted(groups.items()))
        },
    }
