"""The factors of a model's factorised layers as two linear layers each, for what works on linear layers alone."""

from __future__ import annotations

from torch import Tensor, nn

from .layers import LowRankLinear
from .matrices import low_rank_layers, replace_module


class FactorPair(nn.Module):
    """``y = factor_b(factor_a(x))`` with the very parameters of a `LowRankLinear`; a bias belongs to ``factor_b``.

    Args:
        layer: whose parameters are used.
        owner: the pair of the layer that stores the first factor, None if ``layer`` does.
    """

    def __init__(self, layer: LowRankLinear, owner: FactorPair | None) -> None:
        super().__init__()
        self._owner = () if owner is None else (owner,)  # in a tuple: not a child, or the factor were there twice
        if owner is None:
            self.factor_a = _linear(layer.lr_a, None)
        self.factor_b = _linear(layer.lr_b, layer.lr_bias if layer.bias is None else layer.bias)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.train(layer.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., n) to (..., m)."""
        first = self._owner[0].factor_a if self._owner else self.factor_a
        result: Tensor = self.factor_b(first(x))
        return result


class FactorPairs:
    """The pairs of all factorised linear layers of a model; a factorised embedding is none of them.

    Args:
        model: is not changed before `install`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.layers = {
            name: layer for name, layer in low_rank_layers(model).items() if isinstance(layer, LowRankLinear)
        }

    def names(self, part: str) -> list[str]:
        """Return the dotted names of the linear layers ``factor_a`` or ``factor_b``; shared factors have one."""
        shares = part == "factor_a"
        return [f"{name}.{part}" for name, layer in self.layers.items() if not (shares and layer.source is not None)]

    def install(self) -> None:
        """Put the pairs where the layers are."""
        pairs: dict[int, FactorPair] = {}
        ordered = sorted(self.layers.items(), key=lambda item: item[1].source is not None)
        for name, layer in ordered:  # owners first
            pair = FactorPair(layer, None if layer.source is None else pairs[id(layer.source)])
            pairs[id(layer)] = pair
            replace_module(self.model, name, pair)

    def remove(self) -> None:
        """Put the layers back; they hold what became of the parameters."""
        for name, layer in self.layers.items():
            replace_module(self.model, name, layer)


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    linear.weight = weight
    linear.register_parameter("bias", bias)
    return linear
