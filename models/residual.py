"""Where a model's matrices read from and write to the residual stream, by layer, matrix and head."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..foundation.errors import UserError, unknown
from .embedding import TiedHead
from .layers import LowRankLinear
from .matrices import LowRankLayer, head_name

_NAMES: Mapping[str, tuple[str, ...]] = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj", "out_proj", "attention.dense"),
    "gate": ("gate_proj",),
    "up": ("up_proj", "fc1", "dense_h_to_4h"),
    "down": ("down_proj", "fc2", "dense_4h_to_h"),
}
READS = ("q", "k", "v", "gate", "up")
"""Their inputs are the residual stream behind the layer's norm, so their right singular vectors lie in it."""
WRITES = ("o", "down")
"""Their outputs are added to the residual stream, so their left singular vectors lie in it."""
_ATTENTION = ("q", "k", "v", "o")


@dataclass(frozen=True)
class NamedMatrix:
    """One matrix of a model: its dotted module name, its layer, and the field's short name for it (or empty)."""

    module: str
    layer: int | None
    role: str

    @property
    def shown(self) -> str:
        """The short name, or where there is none the module's last part."""
        return self.role or self.module.rpartition(".")[2]


def named_matrices(model: nn.Module) -> list[NamedMatrix]:
    """Return every linear layer, dense or factorised, in the model's order."""
    return [
        matrix_of(name)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | LowRankLinear | TiedHead) and not name.endswith(("lr_a", "lr_b"))
    ]


def matrix_of(module: str) -> NamedMatrix:
    """Return where a module belongs, from its dotted name alone."""
    number = re.search(r"\.(\d+)\.", f".{module}.")
    layer = int(number[1]) if number else None
    role = next((r for r, ends in _NAMES.items() if layer is not None and f".{module}".endswith(_dotted(ends))), "")
    return NamedMatrix(module, layer, role)


def _dotted(ends: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f".{end}" for end in ends)


def find_matrix(model: nn.Module, matrix: str, layer: int | None) -> NamedMatrix:
    """Find a matrix by its short name (q, k, v, o, gate, up, down), its module's name, or part of that from its end.

    Args:
        model: dense or factorised.
        matrix: such as ``o``, ``o_proj``, ``self_attn.o_proj`` or ``lm_head``.
        layer: counted from 0; None for a matrix outside the layers.

    Raises:
        UserError: no such layer or matrix; says which there are.
    """
    every = named_matrices(model)
    if layer is None:
        outside = [candidate for candidate in every if candidate.layer is None]
        matches = [candidate for candidate in outside if candidate.module.endswith(matrix)]
        if len(matches) == 1:
            return matches[0]
        names = ", ".join(candidate.module for candidate in outside)
        raise UserError(
            f"the matrix '{matrix}' belongs to a layer; add --layer, such as --layer 0"
            + (f" (outside the layers there is {names})" if names else "")
        )
    layers = sorted({candidate.layer for candidate in every if candidate.layer is not None})
    if layer not in layers:
        raise UserError(f"there is no layer {layer}; layers are counted from 0, so --layer takes 0 to {layers[-1]}")
    inside = [candidate for candidate in every if candidate.layer == layer]
    matches = [candidate for candidate in inside if matrix in (candidate.role, candidate.module)]
    matches = matches or [candidate for candidate in inside if f".{candidate.module}".endswith(f".{matrix}")]
    if len(matches) != 1:
        if matrix in _NAMES and any("query_key_value" in candidate.module for candidate in inside):
            raise UserError(
                f"this model keeps q, k and v in one matrix, so '{matrix}' has no bases of its own; use --matrix "
                "query_key_value, or o, up or down"
            )
        raise unknown("matrix", matrix, [candidate.shown for candidate in inside], f" in layer {layer}")
    return matches[0]


def weight(model: nn.Module, matrix: NamedMatrix) -> tuple[Tensor, Tensor]:
    """Return a matrix as B (m, r) and A (r, n) in float64 with W = B A; a dense one has A = 1 or B = 1."""
    module = model.get_submodule(matrix.module)
    if isinstance(module, TiedHead):
        module = module.embedding
    if isinstance(module, LowRankLayer):
        return module.lr_b.detach().double(), module.lr_a.detach().double()
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{matrix.module} is a {type(module).__name__}")
    dense = module.weight.detach().double()
    m, n = dense.shape
    # The smaller of the two identities, so that r is min(m, n).
    eye = torch.eye(min(m, n), dtype=torch.float64)
    return (eye, dense) if m <= n else (dense, eye)


@dataclass(frozen=True)
class Heads:
    """How attention is cut: query heads, key/value heads, width of one head."""

    query: int
    key_value: int
    width: int

    @classmethod
    def of(cls, model: Any) -> Heads:
        """Read the layout from a model's configuration."""
        config = model.config.get_text_config()
        query = int(config.num_attention_heads)
        width = getattr(config, "head_dim", None) or config.hidden_size // query
        return cls(query, int(getattr(config, "num_key_value_heads", None) or query), int(width))

    def count(self, role: str) -> int:
        """Return how many heads a matrix has: k and v have the key/value heads, q and o the query heads."""
        return self.key_value if role in ("k", "v") else self.query

    def rows(self, role: str, head: int) -> slice:
        """Return the rows of a head in q, k or v, or its columns in o.

        Raises:
            UserError: the matrix has no heads, or not so many; says what is allowed.
        """
        if role not in _ATTENTION:
            raise UserError(
                f"'{role}' is no attention matrix and has no heads; leave out --head, or use q, k, v, o, ov"
            )
        count = self.count(role)
        if not 0 <= head < count:
            kind = "key/value heads" if role in ("k", "v") and count != self.query else "heads"
            raise UserError(
                f"there is no head {head} in {role}: it has {count} {kind}, counted from 0, so --head takes 0 to "
                f"{count - 1}"
            )
        return slice(head * self.width, (head + 1) * self.width)

    def serves(self, key_value_head: int) -> range:
        """Return the query heads that use a key/value head."""
        group = self.query // self.key_value
        return range(key_value_head * group, (key_value_head + 1) * group)


def input_norm(model: nn.Module, matrix: NamedMatrix) -> nn.Module | None:
    """Return the norm between the residual stream and a matrix that reads it, or None where it is not known."""
    if matrix.layer is None:
        return final_norm(model) if matrix.module == head_name(model) else None
    block = model.get_submodule(f"{matrix.module.partition(f'.{matrix.layer}.')[0]}.{matrix.layer}")
    if matrix.role in ("q", "k", "v") or "query_key_value" in matrix.module:
        names = ["input_layernorm", "self_attn_layer_norm"]
    else:  # Gemma 2 and later have norms on both sides of the MLP
        names = ["pre_feedforward_layernorm", "post_attention_layernorm", "final_layer_norm"]
    return next((getattr(block, name) for name in names if hasattr(block, name)), None)


def final_norm(model: nn.Module) -> nn.Module | None:
    """Return the norm between the residual stream and the output head, or None where it is not known."""
    names = ("norm", "final_layer_norm", "final_layernorm", "ln_f")
    for name, module in model.named_modules():
        # A norm inside a layer has the layer's number in its name.
        if name.rpartition(".")[2] in names and not re.search(r"\.\d+\.", name) and module is not None:
            return module
    return None


def through_norm(norm: nn.Module, vectors: Tensor, reading: bool = False) -> Tensor:
    """Apply the linear part of a norm, weight and (LayerNorm) centring, without its division, to rows (k, d).

    Args:
        norm: RMSNorm of any kind, or LayerNorm.
        vectors: float64.
        reading: apply the transpose, which turns a direction behind the norm into the stream's direction it reads.
    """
    if isinstance(norm, nn.LayerNorm):
        gain = torch.ones(vectors.shape[1]) if norm.weight is None else norm.weight.detach()
        gain = gain.to(vectors)
        if reading:
            # The map is centring, then gain; its transpose is gain, then centring (centring is symmetric).
            scaled = vectors * gain
            return scaled - scaled.mean(1, keepdim=True)
        return (vectors - vectors.mean(1, keepdim=True)) * gain
    probe = next(norm.parameters()).detach()
    with torch.no_grad():
        # What the norm makes of ones is its gain, also where it stores the gain minus one (Gemma).
        return vectors * norm(torch.ones_like(probe)[None])[0].to(vectors)
