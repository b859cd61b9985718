"""The factorised linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer stored as two factors: ``y = lr_b (lr_a x) + bias``.

    Args:
        in_features: n, width of the input.
        out_features: m, width of the output.
        rank: r, inner width; the layer stores r·(n + m) weights.
        bias: whether the dense layer had a bias (added once, after the second factor).
        dtype, device: of all parameters.
        added_bias: whether factorising adds a bias that the dense layer does not have.
        source: a layer whose first factor this one uses as its own; the factor is stored once, there.

    Parameters: ``lr_a`` (r, n) is applied first, ``lr_b`` (m, r) second, ``bias`` or ``lr_bias`` (m,). With a source,
    ``lr_a`` is the source's tensor itself and not among this layer's parameters.
    """

    lr_a: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        added_bias: bool = False,
        source: LowRankLinear | None = None,
    ) -> None:
        super().__init__()
        # Not min(n, m): a factor that narrow matrices share may have more rows than any of them has outputs.
        if not 1 <= rank <= in_features:
            raise ValueError(
                f"rank {rank} does not fit a {out_features} x {in_features} matrix; "
                f"it must lie between 1 and {in_features}"
            )
        if bias and added_bias:
            raise ValueError("a layer that has a bias takes no second one; add to it instead")
        if source is not None and source.lr_a.shape != (rank, in_features):
            raise ValueError(
                f"the shared factor has shape {tuple(source.lr_a.shape)}, this layer needs {(rank, in_features)}"
            )
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        # In a tuple, or the source would be registered as a child and its factor stored twice.
        self._source: tuple[LowRankLinear, ...] = () if source is None else (source,)
        if source is None:
            self.lr_a = nn.Parameter(torch.empty(rank, in_features, dtype=dtype, device=device))
        self.lr_b = nn.Parameter(torch.empty(out_features, rank, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if bias else None
        self.lr_bias = nn.Parameter(torch.empty(out_features, dtype=dtype, device=device)) if added_bias else None

    def __getattr__(self, name: str) -> Any:
        """Find ``lr_a`` at the source, everything else as usual."""
        if name == "lr_a" and self.__dict__.get("_source"):
            return self._source[0].lr_a
        return super().__getattr__(name)

    @property
    def source(self) -> LowRankLinear | None:
        """The layer that stores the first factor, or None if this one does."""
        return self._source[0] if self._source else None

    def set_source(self, source: LowRankLinear | None) -> None:
        """Let a layer that shares a first factor use another layer's, or (None) a copy of it as its own.

        Args:
            source: a layer whose first factor has the same shape.
        """
        shared = self.lr_a
        self._source = () if source is None else (source,)
        if source is None:
            self.lr_a = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)

    @classmethod
    def from_factors(
        cls,
        a: Tensor,
        b: Tensor,
        bias: Tensor | None = None,
        added_bias: Tensor | None = None,
        source: LowRankLinear | None = None,
    ) -> LowRankLinear:
        """Build a layer from A (r, n), B (m, r) and an optional bias (m,), keeping A's dtype and device.

        Args:
            a: with a source, only its shape, dtype and device are used.
            b: the second factor.
            bias: of the dense layer.
            added_bias: where the dense layer has none.
            source: the layer that stores ``a``.
        """
        layer = cls(
            a.shape[1], b.shape[0], a.shape[0], bias is not None, a.dtype, a.device, added_bias is not None, source
        )
        with torch.no_grad():
            if source is None:
                layer.lr_a.copy_(a)
            layer.lr_b.copy_(b)
            for own, value in ((layer.bias, bias), (layer.lr_bias, added_bias)):
                if own is not None and value is not None:
                    own.copy_(value)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n) to (..., m)."""
        bias = self.lr_bias if self.bias is None else self.bias
        return nn.functional.linear(nn.functional.linear(x, self.lr_a), self.lr_b, bias)

    def dense_weight(self) -> Tensor:
        """Return the product B A, shape (m, n), multiplied in float32 or better."""
        wide = torch.promote_types(self.lr_a.dtype, torch.float32)
        # Rounded once: a product in bfloat16 would be rounded at every partial sum.
        return (self.lr_b.to(wide) @ self.lr_a.to(wide)).to(self.lr_a.dtype)

    def extra_repr(self) -> str:
        """Describe the shape in `repr`."""
        shared = ", shared input factor" if self._source else ""
        return f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}{shared}"
