"""Writing a streamed model: safetensors files of bounded size, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..foundation.files import sync
from ..foundation.progress import track
from .checkpoint import LowRankConfig, describe, save_checkpoint
from .dtypes import SaveDtypes, rounded
from .matrices import low_rank_layers
from .saved import verify_saved
from .streamed import weights_of

SHARD_BYTES = 5 * 10**9
"""Largest safetensors file, unless one tensor alone is larger."""

# https://huggingface.co/docs/safetensors/index#format; bool and integers occur in buffers alone.
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Promise:
    """A tensor that is made when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """Size of the data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def write_shards(tensors: Iterable[Promise], folder: Path, limit_bytes: int = SHARD_BYTES) -> None:
    """Write tensors as ``model.safetensors``, or as numbered files with ``model.safetensors.index.json``.

    Args:
        tensors: in the order in which they are written; each is made, written and forgotten.
        folder: made if missing.
        limit_bytes: of one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[Promise]] = [[]]
    for promise in tensors:
        if shards[-1] and sum(p.bytes for p in shards[-1]) + promise.bytes > limit_bytes:
            shards.append([])
        shards[-1].append(promise)
    if len(shards) == 1:
        _write(folder / "model.safetensors", shards[0])
        sync(folder)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write(folder / file, shard)
        weight_map |= {promise.name: file for promise in shard}
    every = [promise for shard in shards for promise in shard]
    sizes = {
        "total_parameters": sum(torch.Size(promise.shape).numel() for promise in every),
        "total_size": sum(promise.bytes for promise in every),
    }
    # Last: a folder with an index is whole.
    index = json.dumps({"metadata": sizes, "weight_map": weight_map}, indent=2, sort_keys=True) + "\n"
    (folder / "model.safetensors.index.json").write_text(index)
    sync(folder / "model.safetensors.index.json")
    sync(folder)


def _write(file: Path, shard: list[Promise]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    # Loaders want data aligned to its type: wider types come first.
    shard = sorted(shard, key=lambda promise: -promise.dtype.itemsize)
    offset = 0
    for promise in shard:
        end = offset + promise.bytes
        header[promise.name] = {
            "dtype": _NAMES[promise.dtype],
            "shape": list(promise.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # Padded with spaces, so that the data behind it start at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for promise in track(shard, unit="tensors written"):
            tensor = promise.make()
            if tuple(tensor.shape) != promise.shape or tensor.dtype != promise.dtype:
                raise ValueError(f"{promise.name} came as {tensor.dtype} {tuple(tensor.shape)}, not as announced")
            # As bytes, because numpy has no bfloat16.
            out.write(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            del tensor
        out.flush()
        os.fsync(out.fileno())


def save_model(model: Any, tokenizer: Any, folder: Path, dtypes: SaveDtypes) -> None:
    """Write a model, streamed or in memory, dense or factorised, and its tokenizer as one folder.

    Args:
        model: of one that is in memory the tensors are cast in place.
        tokenizer: saved beside it, or None.
        folder: made if missing.
        dtypes: of the written floating-point tensors.
    """
    if weights_of(model) is not None:
        save_streamed(model, tokenizer, folder, dtypes)
        return
    dtypes.cast(model)
    save_checkpoint(model, tokenizer, folder)
    if str(model.config.dtype).removeprefix("torch.") != dtypes.name:  # transformers writes the first tensor's
        model.config.dtype = dtypes.name
        model.config.save_pretrained(folder)


def save_streamed(model: Any, tokenizer: Any, folder: Path, dtypes: SaveDtypes, limit_bytes: int = SHARD_BYTES) -> None:
    """Write a streamed model, dense or factorised, as `checkpoint.save_checkpoint` writes one that is in memory.

    Args:
        model: opened by `streamed.open_streamed`, possibly with empty `LowRankLinear` layers.
        tokenizer: saved beside it, or None.
        folder: made if missing.
        dtypes: of the written floating-point tensors.
        limit_bytes: of one file.

    Raises:
        UserError: what was written is not whole.
    """
    weights = weights_of(model)
    if weights is None:
        raise ValueError("the model is in memory; use save_checkpoint")
    config = model.config
    if low_rank_layers(model):
        config.quantization_config = LowRankConfig(**describe(model).to_dict())
    config.dtype = dtypes.name
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
    promises = []
    for name, tensor in model.state_dict().items():
        if name in weights.tied or name in ignored:
            continue
        kind = dtypes.of(name) if tensor.is_floating_point() else tensor.dtype

        # Defaults bind now; a closure would see the last name and dtype of the loop.
        def make(name: str = name, kind: torch.dtype = kind) -> Tensor:
            value = weights.stored(name)
            return rounded(name, value.float(), kind) if kind.is_floating_point else value

        promises.append(Promise(name, tuple(tensor.shape), kind, make))
    if low_rank_layers(model):
        guard = config.quantization_config.layout.guard
        promises.append(Promise(guard, (0,), torch.float32, lambda: torch.empty(0)))
    write_shards(promises, folder, limit_bytes)
    verify_saved(model, folder)
