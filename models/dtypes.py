"""In which dtype each tensor of a checkpoint is written, which need not be that of the arithmetic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..foundation.errors import UserError, unknown
from .claims import claim
from .configs import load_config
from .folder_checks import layout_of, read_object
from .loading import DTYPES, load_skeleton, own_dtype
from .streamed import NotStreamable, stored_tensors

OWN = "own"
SAVE_DTYPES = (OWN, *DTYPES)
"""What a user may ask for: ``own`` is each tensor's dtype in the folder that was read."""

_BY_NAME = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_FLOATS = ("F", "BF")  # float64 and float8 are written as float32, which is what they are read as


@dataclass(frozen=True)
class SaveDtypes:
    """The dtypes of one checkpoint.

    Attributes:
        declared: what ``config.json`` says, and the dtype of every tensor that nothing else is known of.
        stored: by the model's name of a tensor; empty where all have the declared one.
    """

    declared: torch.dtype
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)

    def of(self, name: str) -> torch.dtype:
        """Return the dtype of a floating-point tensor; a factor, or what was factors, has that of its matrix."""
        module = name.rpartition(".")[0]
        same = (name, f"{module}.weight", f"{module}.lr_b")
        return next((self.stored[key] for key in same if key in self.stored), self.declared)

    @property
    def name(self) -> str:
        """The declared dtype as ``config.json`` writes it."""
        return str(self.declared).removeprefix("torch.")

    @property
    def is_uniform(self) -> bool:
        """Whether every tensor has the declared dtype."""
        return set(self.stored.values()) <= {self.declared}

    def cast(self, model: Any) -> None:
        """Give the floating-point tensors that a checkpoint of a model in memory holds their dtypes, in place."""
        saved_names = model.state_dict().keys()  # without the buffers that no checkpoint holds
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name in saved_names and tensor.is_floating_point() and tensor.dtype != self.of(name):
                # A gradient would keep the old dtype, in which it no longer fits the tensor.
                tensor.grad = None
                tensor.data = rounded(name, tensor.data, self.of(name))


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a floating-point tensor in another dtype.

    Raises:
        UserError: numbers that float16 cannot hold.
    """
    result = tensor.to(dtype)
    if dtype == torch.float16 and bool((result.isinf() & tensor.isfinite()).any()):
        raise UserError(
            f"the tensor {name} holds numbers beyond float16 (65504); use --save-dtype bfloat16, or float32"
        )
    return result


def save_dtypes(name: str, location: str | Path, revision: str = "") -> SaveDtypes:
    """Return the dtypes to write a model in.

    Args:
        name: one of `SAVE_DTYPES`.
        location: folder or hub id that the model was read from, dense or factorised.
        revision: hub commit, or empty for a folder.

    Raises:
        UserError: an unknown dtype, or a folder that cannot be read.
    """
    if name not in SAVE_DTYPES:
        raise unknown("dtype", name, SAVE_DTYPES)
    if name != OWN:
        return SaveDtypes(DTYPES[name])
    stored = _stored_dtypes(location, revision)
    config = load_config(location, revision)
    if str(getattr(config, "dtype", None) or "").removeprefix("torch.") in DTYPES or not stored:
        return SaveDtypes(DTYPES[own_dtype(config)], stored)
    return SaveDtypes(Counter(stored.values()).most_common(1)[0][0], stored)


def _stored_dtypes(location: str | Path, revision: str) -> dict[str, torch.dtype]:
    """Return the dtype of each floating-point tensor by the model's name; empty where no safetensors files say it."""
    try:
        tensors = stored_tensors(location, revision, download=False)
    except NotStreamable:  # a hub model in another file format
        return {}
    skeleton: Any = load_skeleton(location, revision)
    dtypes: dict[str, torch.dtype] = {}
    layout = layout_of(read_object(Path(location) / "config.json")) if Path(location).is_dir() else None
    for key, name in claim(skeleton, tensors, str(location), layout).names.items():
        if tensors[key].dtype.startswith(_FLOATS) and 0 not in tensors[key].shape:  # empty: a factorised model's guard
            dtype = _BY_NAME.get(tensors[key].dtype, torch.float32)
            dtypes[name] = torch.promote_types(dtypes.get(name, dtype), dtype)  # several may be merged into one
    for name, source in dict(getattr(skeleton, "all_tied_weights_keys", None) or {}).items():
        if source in dtypes:
            dtypes.setdefault(name, dtypes[source])
    return dtypes
