"""The headers of a checkpoint's safetensors files: names, shapes and dtypes, without a byte of the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..foundation.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from .layout import Layout

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")
_AGAIN = "make or copy the checkpoint again"


@dataclass(frozen=True)
class Header:
    """What a file says of one tensor: where it is, its shape, and its dtype as safetensors names it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def parameters(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size of the data; names of dtypes end in their bits (``BF16``, ``F8_E4M3``)."""
        bits = re.search(r"\d+", self.dtype)
        return self.parameters * (int(bits[0]) if bits else 8) // 8


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files that loaders read: those that the folder's index names, else ``model.safetensors``.

    Others beside them (an adapter's, a copy in another layout) do not count. Empty where there are none.

    Raises:
        UserError: an index that cannot be read, names a file outside the folder or one that is not there, or lies
            beside a ``model.safetensors``, of which loaders would read one or the other.
    """
    index = folder / INDEX
    if not index.is_file():
        return [folder / SINGLE] if (folder / SINGLE).is_file() else []
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{index} cannot be read ({type(error).__name__}: {error}); {_AGAIN}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"the weight_map of {index} names {name!a}, which is no safetensors file of the folder; {_AGAIN}"
            )
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing, which the weight_map of {index} names; {_AGAIN}")
    if (folder / SINGLE).exists() and SINGLE not in names:
        raise UserError(f"{folder} has both {SINGLE} and {INDEX}, so loaders differ in what they read; remove one")
    if not names:
        raise UserError(f"the weight_map of {index} names no file; {_AGAIN}")
    return [folder / name for name in names]


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """Return the header of every tensor by name.

    Raises:
        UserError: a file that is corrupt, or two that hold the same tensor.
    """
    headers: dict[str, Header] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    if name in headers:
                        raise UserError(
                            f"the tensor {name} is in both {headers[name].file.name} and {file}; keep one of them"
                        )
                    part = tensors.get_slice(name)
                    headers[name] = Header(file, tuple(part.get_shape()), str(part.get_dtype()))
        except (OSError, SafetensorError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise UserError(f"{file} is corrupt or cut short ({reason}); {_AGAIN}") from error
    return headers


def check_shapes(model: nn.Module, headers: Mapping[str, Header], layout: Layout | None, folder: str) -> None:
    """Check shapes and dtypes of stored tensors against the model that ``config.json`` describes.

    Tensors that go by another name in the model are left to the loader.

    Args:
        model: the dense model on the meta device.
        headers: of the stored tensors, by name.
        layout: what is factorised, or None.
        folder: named in the error.

    Raises:
        UserError: names the tensor, its shape and the shape that is expected.
    """
    check_not_quantised(headers)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        if tensor.ndim < 3:  # experts may be stored transposed, and are turned while loading
            shapes[name] = tuple(tensor.shape)
    for head in layout.embeddings.values() if layout else ():
        shapes.pop(f"{head}.weight", None)
    for name, rank in (layout.ranks if layout else {}).items():
        width, outputs, biased = _linear(model, name, folder, layout is not None and name in layout.embeddings)
        if rank > width:
            raise UserError(
                f"the rank of '{name}' in {folder}/config.json is {rank}, its matrix has {width} inputs; {_AGAIN}"
            )
        shapes.pop(f"{name}.weight", None)
        shapes |= {f"{name}.lr_a": (rank, width), f"{name}.lr_b": (outputs, rank), f"{name}.lr_bias": (outputs,)}
        if biased and layout and name in layout.added_bias:
            raise UserError(f"{folder}/config.json adds a bias to '{name}', which has one already; {_AGAIN}")
        if biased and f"{name}.bias" not in headers:
            raise UserError(f"{folder}: the tensor {name}.bias is missing; {_AGAIN}")
    for name, header in headers.items():
        if name not in shapes:
            continue
        if header.shape != shapes[name]:
            raise UserError(
                f"{header.file}: the tensor {name} has another shape, {header.shape}, than config.json says, "
                f"{shapes[name]}; {_AGAIN}"
            )
        if header.dtype not in _FLOATS:
            raise UserError(
                f"{header.file}: the tensor {name} is stored as {header.dtype}, weights must be one of "
                f"{', '.join(_FLOATS)}; {_AGAIN}"
            )


def check_not_quantised(headers: Mapping[str, Header]) -> None:
    """Refuse weights in 8 bits or fewer, whatever their names: loaders would read the codes without their scales.

    Raises:
        UserError: names the file, the tensor and its dtype.
    """
    for name, header in headers.items():
        matrix = len(header.shape) > 1 and name.endswith(("weight", "_proj"))
        if header.dtype.startswith(("F8_", "F6_", "F4")) or (header.dtype in ("I8", "U8") and matrix):
            raise UserError(
                f"{header.file}: the tensor {name} is stored as {header.dtype}, weights must be one of "
                f"{', '.join(_FLOATS)}; name the model as it was before quantisation"
            )


def _linear(model: Any, name: str, folder: str, embedding: bool) -> tuple[int, int, bool]:
    """Return inputs, outputs and whether there is a bias, of a linear layer or of an embedding as one."""
    from torch import nn

    try:
        module = model.get_submodule(name)
    except AttributeError:
        module = None
    if embedding and isinstance(module, nn.Embedding):
        return module.embedding_dim, module.num_embeddings, False
    if embedding or not isinstance(module, nn.Linear):
        kind = "embedding" if embedding else "linear layer"
        raise UserError(
            f"{folder}/config.json announces factors for '{name}', which is no {kind} of {type(model).__name__}; "
            f"{_AGAIN}"
        )
    return module.in_features, module.out_features, module.bias is not None
