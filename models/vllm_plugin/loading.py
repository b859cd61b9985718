"""Collects the tensors of one vLLM layer: cut to this process's share, kept by their place in the fused layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.utils import set_weight_attrs

from ...foundation.errors import UserError

TENSORS = ("weight", "lr_a", "lr_b", "lr_bias")
Sizes = Mapping[str, int]
_QKV = {"q": 0, "k": 1, "v": 2}


class Loaded:
    """What has been read for a layer, at the first load and at every reload.

    vLLM hands each tensor to the parameter of its name together with the part of the fused layer it belongs to. The
    parameters are empty: sizes follow from what comes, because ranks differ between the parts. vLLM reloads a layer
    as soon as as many numbers were copied as its parameters announce in ``weight_loader_numel``, and runs every loader
    twice (once on the meta device, to count).

    Args:
        layer: vLLM's layer.
        columns: this process's columns of the first factor.
        outputs: number of outputs of this process.
        dtype: of everything kept.
        sizes: how many numbers of each tensor this process keeps, all parts together.
    """

    def __init__(self, layer: nn.Module, columns: slice, outputs: int, dtype: torch.dtype, sizes: Sizes) -> None:
        # vLLM keeps the parameters in a table by layer for as long as the layer lives: they must not keep it alive.
        self._layer = weakref.ref(layer)
        self._columns, self._outputs = columns, outputs
        self._rows: dict[tuple[int, Any], Tensor] = {}
        self._parts: dict[str, dict[int, Tensor]] = {name: {} for name in TENSORS}
        for name in TENSORS:
            parameter = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
            attributes = {"weight_loader": self._loader(name), "weight_loader_numel": sizes[name]}
            set_weight_attrs(parameter, attributes)
            layer.register_parameter(name, parameter)

    def _loader(self, name: str) -> Callable[..., None]:
        """Return a parameter's weight loader; vLLM's reload wants a ``__name__`` and an argument ``param``."""

        def load(param: nn.Parameter, loaded_weight: Tensor, shard_id: Any = None) -> None:
            self._keep(name, param, loaded_weight, shard_id)

        return load

    def _keep(self, name: str, parameter: nn.Parameter, tensor: Tensor, part: Any) -> None:
        if name == "weight" and tensor.numel() == 0:  # the checkpoint's guard
            return
        share = tensor[:, self._columns] if name == "lr_a" else tensor[self._held_rows(len(tensor), part)]
        # Always a copy: some loaders reuse the memory of what they hand over.
        copy = torch.empty(share.shape, dtype=parameter.dtype, device=parameter.device)
        self._parts[name][_position(part)] = copy.copy_(share)

    def _held_rows(self, rows: int, part: Any) -> Tensor:
        if (rows, part) not in self._rows:  # kept for reloads, which would count the copies made to find out
            self._rows[rows, part] = held_rows(self._layer(), self._outputs, rows, part)
        return self._rows[rows, part]

    def take(self, layer: nn.Module, modules: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of every module by name, and forget them.

        Args:
            layer: loses its empty parameters, except ``weight``, which parts of vLLM expect to exist.
            modules: of the checkpoint that the layer consists of, in the order of its outputs.

        Raises:
            UserError: a module came without its second factor or dense weight.
        """
        for name in TENSORS:
            if name != "weight":
                delattr(layer, name)
        starts = sorted(self._parts["lr_b"].keys() | self._parts["weight"].keys())
        if len(starts) != len(modules):
            missing = [name for position, name in enumerate(modules) if position not in starts]
            raise UserError(
                f"the checkpoint has no tensor {missing[0] if missing else modules[0]}.lr_b, or (in a reload) more in "
                "front of it than config.json says; make or copy the checkpoint again"
            )
        tensors: dict[str, dict[str, Tensor]] = {
            module: {name: parts[start] for name, parts in self._parts.items() if start in parts}
            for module, start in zip(modules, starts, strict=True)
        }
        self._parts = {name: {} for name in TENSORS}
        return tensors


def held_rows(layer: Any, outputs: int, rows: int, part: Any) -> Tensor:
    """Return which rows of a matrix on disk this process holds, as the layer's own loader decides it.

    The loader is given row numbers in place of a weight, so query heads, replicated key-value heads, merged matrices
    and the vocabulary are cut exactly as in the dense model.

    Args:
        layer: vLLM's layer.
        outputs: number of outputs of this process, all parts together.
        rows: number of rows on disk.
        part: what vLLM calls the part of the fused layer, or None.
    """
    # Numbered from 1, because the loader leaves zeros where it pads. On the CPU, because vLLM runs loaders on the meta
    # device too, where there would be no numbers to read.
    numbers = nn.Parameter(torch.zeros(outputs, dtype=torch.int64, device="cpu"), requires_grad=False)
    set_weight_attrs(numbers, {"output_dim": 0})
    layer.weight_loader(numbers, torch.arange(1, rows + 1, device="cpu"), *(() if part is None else (part,)))
    return numbers.data[numbers.data > 0] - 1


def _position(part: Any) -> int:
    if isinstance(part, tuple):
        part = part[0]
    return 0 if part is None else _QKV.get(part, 0) if isinstance(part, str) else part
