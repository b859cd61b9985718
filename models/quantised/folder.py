"""The packed file beside a rounded checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...foundation.files import sync
from .model import CORRECTION_A, CORRECTION_B, FACTOR_SCALE, PACKED, SCALE, SHAPE
from .packing import unpack
from .rounding import from_groups, group_for
from .scheme import Scheme

_SCHEME = "scheme"


def write_packed(tensors: Mapping[str, Tensor], scheme: Scheme, file: Path) -> int:
    """Write the tensors that `model.quantise` returned and return the bytes of the file."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(plain, file, {_SCHEME: scheme.model_dump_json()})
    sync(file)
    return file.stat().st_size


def scheme_of(file: Path) -> Scheme:
    """Return how the weights of a packed file are rounded."""
    with safe_open(file, framework="pt") as stored:
        return Scheme.model_validate_json(stored.metadata()[_SCHEME])


def read_packed(file: Path) -> dict[str, Tensor]:
    """Return the weights that a packed file encodes, by the model's names, rounded ones in float32.

    Of two factors, A gets the integers and B the integers times the scales; their product is the module's matrix. A
    matrix with a correction is the sum of both.
    """
    scheme = scheme_of(file)
    with safe_open(file, framework="pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    weights: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == PACKED:
            columns = int(tensors[f"{module}.{SHAPE}"][1])
            integers = unpack(tensor, scheme.bits, columns)
            group = group_for(columns, scheme.group)
            weight = from_groups(integers, tensors[f"{module}.{SCALE}"], group)
            if (first := tensors.get(f"{module}.{CORRECTION_A}")) is not None:
                weight += tensors[f"{module}.{CORRECTION_B}"].float() @ first.float()
            weights[f"{module}.weight"] = weight
        elif part == "lr_b" and tensor.dtype == torch.int8:
            weights[name] = tensor.float() * tensors[f"{module}.{FACTOR_SCALE}"].float()
        elif part not in (SCALE, SHAPE, FACTOR_SCALE, CORRECTION_A, CORRECTION_B):
            weights[name] = tensor.float() if tensor.dtype == torch.int8 else tensor
    return weights
