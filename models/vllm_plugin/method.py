"""The factorised layer in vLLM: ``y = lr_b (lr_a x) + bias`` for plain, fused and sharded layers and for the head."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearMethodBase, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.platforms import current_platform

from ...foundation.errors import UserError
from ...foundation.finite import all_finite
from ..layout import Layout
from .loading import TENSORS, Loaded
from .sharing import Factor, FirstFactors

_DENSE = -1  # in place of the number of a stack: the part reads the layer's input itself

_UNKNOWN = 1 << 40  # numbers never reached: a reload processes the layer when all has been read


class Announced(Protocol):
    """What a checkpoint announces: its layout, replaced as vLLM's own names become known, and shared factors."""

    layout: Layout
    factors: FirstFactors


class LowRankMethod(LinearMethodBase):
    """How vLLM makes, fills and applies one factorised layer.

    Tensor parallelism follows the dense layer. Column parallel (q, k, v, gate, up, head): every process holds the whole
    first factor and its rows of the second, no extra communication. Row parallel (o, down): its columns of the first
    factor and the whole second one; the layer's own all-reduce adds up the results, as the product is linear.

    Args:
        config: what the checkpoint announces.
        prefix: the layer's name in vLLM.
        modules: the checkpoint's modules that the layer consists of, in the order of its outputs.
    """

    def __init__(self, config: Announced, prefix: str, modules: tuple[str, ...]) -> None:
        self._config, self._modules = config, modules
        self._dense = UnquantizedLinearMethod()  # every product goes the way that vLLM's own go on this platform
        config.factors.announce(prefix, modules)

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Register empty parameters that collect what the checkpoint holds; see `loading.Loaded`."""
        # Only a row-parallel layer holds fewer columns than its matrix has.
        start = layer.tp_rank * input_size_per_partition if input_size_per_partition < input_size else 0
        self._kind = (input_size, input_size_per_partition)
        self._outputs = sum(output_partition_sizes)
        columns = slice(start, start + input_size_per_partition)
        sizes = self._sizes(output_partition_sizes, input_size_per_partition)
        self._loaded = Loaded(layer, columns, self._outputs, params_dtype, sizes)
        self._seconds: dict[str, Factor] = {}

    def _sizes(self, outputs: list[int], columns: int) -> dict[str, int]:
        """Return how many numbers this process keeps of each kind of tensor, or more where that is not known."""
        # One matrix on disk may have several parts in vLLM, as Phi-3's qkv_proj.
        rows = outputs if len(outputs) == len(self._modules) else [sum(outputs)]
        if len(rows) != len(self._modules):
            return dict.fromkeys(TENSORS, _UNKNOWN)
        layout, sizes = self._config.layout, dict.fromkeys(TENSORS, 0)
        for name, height in zip(self._modules, rows, strict=True):
            rank = layout.ranks.get(name)
            if rank is None:
                sizes["weight"] += height * columns
                continue
            sizes["lr_a"] += 0 if name in layout.shared else rank * columns
            sizes["lr_b"] += height * rank
            sizes["lr_bias"] += height if name in layout.added_bias else 0
        return sizes

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Put the collected tensors into the form that `apply` computes with; a reload fills the same memory again.

        Raises:
            UserError: a missing tensor, or one that does not have the announced rank or the layer's size.
        """
        layout, factors = self._config.layout, self._config.factors
        tensors = self._loaded.take(layer, self._modules)
        for name, own_tensors in tensors.items():
            self._check(name, own_tensors)
        own = [name for name in self._modules if name in layout.ranks and name not in layout.shared]
        multiple = rank_multiple()
        for group in factors.stacks(own):
            factors.store(group, [tensors[name].pop("lr_a") for name in group], multiple, self._kind, self._dense)

        stacks: list[Factor] = []
        seconds: list[Factor] = []
        self._cuts: list[tuple[int, int, int]] = []
        row = 0
        for name in self._modules:
            own_tensors = tensors[name]
            matrix = own_tensors.pop("lr_b") if name in layout.ranks else own_tensors.pop("weight")
            cut = (_DENSE, 0, 0)  # number of the stack, first and last column of its product
            if name in layout.ranks:
                rows = factors.rows_of(name, self._kind)
                if all(rows.stack is not stack for stack in stacks):
                    stacks.append(rows.stack)
                number = next(i for i, stack in enumerate(stacks) if rows.stack is stack)
                cut = (number, rows.start, rows.stop)
                # The stack has zero rows up to the next `rank_multiple`, and these zero columns belong to them.
                matrix = nn.functional.pad(matrix, (0, rows.stop - rows.start - matrix.shape[1]))
            # The vocabulary is padded to a multiple of the processes; the dense layer has zero rows there too.
            if isinstance(layer, ParallelLMHead):
                matrix = nn.functional.pad(matrix, (0, 0, 0, self._outputs - len(matrix)))
            self._cuts.append(cut)
            factor = self._seconds.setdefault(name, Factor())
            factor.fill(self._dense, matrix, self._bias(layer, row, len(matrix), own_tensors.pop("lr_bias", None)))
            seconds.append(factor)
            row += len(matrix)
        if row != self._outputs:
            raise UserError(
                f"the tensors of {', '.join(self._modules)} have {row} outputs, the layer has {self._outputs}; "
                "make or copy the checkpoint again"
            )
        self._always_bias = any(name in layout.added_bias for name in self._modules)
        if not hasattr(layer, "lr_seconds"):
            layer.lr_stacks, layer.lr_seconds = nn.ModuleList(stacks), nn.ModuleList(seconds)

    def _check(self, name: str, tensors: dict[str, Tensor]) -> None:
        layout = self._config.layout
        rank = layout.ranks.get(name)
        expected: dict[str, tuple[int | None, int] | None] = (
            {"weight": None} if rank is None else {"lr_b": (None, rank)}
        )
        if rank is not None and name not in layout.shared:
            expected |= {"lr_a": (rank, self._kind[1])}
        if name in layout.added_bias:
            expected |= {"lr_bias": None}
        for tensor in expected.keys() - tensors.keys():
            raise UserError(f"the checkpoint has no tensor {name}.{tensor}; make or copy the checkpoint again")
        for tensor in tensors.keys() - expected.keys():
            raise UserError(f"the checkpoint has a tensor {name}.{tensor} that its config.json does not announce")
        for tensor, shape in expected.items():
            if rank is not None and not all_finite(tensors[tensor]):
                raise UserError(f"the tensor {name}.{tensor} holds NaN or infinity; make the checkpoint again")
            if shape and any(a not in (None, b) for a, b in zip(shape, tensors[tensor].shape, strict=True)):
                raise UserError(
                    f"the tensor {name}.{tensor} has shape {tuple(tensors[tensor].shape)} on this process, config.json "
                    f"says rank {rank}; make or copy the checkpoint again"
                )

    def _bias(self, layer: Any, start: int, length: int, added: Tensor | None) -> Tensor | None:
        if isinstance(layer, RowParallelLinear) and layer.tp_rank > 0:  # or the all-reduce would add it again
            return None
        native = None if layer.bias is None or getattr(layer, "skip_bias_add", False) else layer.bias.data
        if native is None:
            return added
        native = native[start : start + length].clone()
        return native if added is None else native + added

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map (..., in) to (..., out), of this process's share.

        Args:
            layer: vLLM's layer.
            x: input in the layer's dtype.
            bias: the layer's own bias or None; a copy of it, cut to the parts, is what is added.
        """
        product = self._dense.apply
        hidden = [product(stack, x) for stack in layer.lr_stacks]
        parts = []
        for (number, start, stop), second in zip(self._cuts, layer.lr_seconds, strict=True):
            source = x if number == _DENSE else hidden[number][..., start:stop]
            parts.append(product(second, source, second.bias if bias is not None or self._always_bias else None))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Refuse: a factorised head is not the embedding.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"the checkpoint factorises '{self._modules[0]}' but config.json ties it to the embedding; "
            "set tie_word_embeddings to false or compress the model without its head"
        )


def rank_multiple() -> int:
    """Return what ranks are padded to: accelerators want rows that start at 32 bytes, two-byte numbers included."""
    return 1 if current_platform.is_cpu() else 16
