"""The factorised embedding in vLLM, and the output head that is tied to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.utils import set_weight_attrs

from ...foundation.errors import UserError
from ...foundation.finite import all_finite


class LowRankEmbeddingMethod(QuantizeMethodBase):
    """How vLLM makes, fills and applies a factorised embedding: row t is ``lr_b[t] lr_a``.

    Tensor parallelism follows the dense layer: ``lr_b`` is cut and padded along the vocabulary by the layer's own
    loader, every process holds the whole ``lr_a``. What a process looks up for another's tokens is masked by the layer,
    and its all-reduce adds up the rest, as the product is linear.

    Args:
        name: of the checkpoint's module.
        rank: of its factors.
    """

    def __init__(self, name: str, rank: int) -> None:
        self._name, self._rank = name, rank

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
        """Register ``lr_a`` (r, d), ``lr_b`` (V of this process, r), and an empty ``weight`` for the guard."""
        rows = sum(output_partition_sizes)
        first = nn.Parameter(torch.empty(self._rank, input_size, dtype=params_dtype), requires_grad=False)
        second = nn.Parameter(torch.empty(rows, self._rank, dtype=params_dtype), requires_grad=False)
        guard = nn.Parameter(torch.empty(0, dtype=params_dtype), requires_grad=False)
        # The layer's loader cuts along `output_dim`; a tensor without one, such as `lr_a`, is copied whole.
        set_weight_attrs(second, {"output_dim": 0})
        for name, parameter in {"lr_a": first, "lr_b": second, "weight": guard}.items():
            set_weight_attrs(parameter, extra_weight_attrs)
            layer.register_parameter(name, parameter)

    def process_weights_after_loading(self, layer: nn.Module) -> None:
        """Check the factors.

        Raises:
            UserError: one holds a NaN or an infinity.
        """
        for name in ("lr_a", "lr_b"):
            if not all_finite(getattr(layer, name)):
                raise UserError(f"the tensor {self._name}.{name} holds NaN or infinity; make the checkpoint again")

    def embedding(self, layer: Any, ids: Tensor) -> Tensor:
        """Map token ids (…) of this process's rows to (…, d)."""
        return nn.functional.embedding(ids, layer.lr_b) @ layer.lr_a

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map hidden states (…, d) to the logits of this process's share of the vocabulary, as the tied head."""
        return nn.functional.linear(nn.functional.linear(x, layer.lr_a), layer.lr_b, bias)


class TiedHeadMethod(QuantizeMethodBase):
    """A head that stores nothing: vLLM ties it, and then the factorised embedding takes its place."""

    def create_weights(self, layer: Any, *sizes: Any, **attributes: Any) -> None:
        """Register nothing."""

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Refuse: a head that computes by itself was not tied.

        Raises:
            UserError: always.
        """
        raise UserError(
            "the checkpoint ties its output head to the factorised embedding, but config.json does not; set "
            "tie_word_embeddings to true, or make the checkpoint again"
        )

    def tie_weights(self, layer: nn.Module, embed_tokens: nn.Module) -> nn.Module:
        """Return the embedding, whose method computes logits too."""
        return embed_tokens
