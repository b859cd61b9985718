"""What methods collect from a model on task data, whether it is in memory or read layer by layer from disk.

The choice between `in_memory` and `sequential_statistics` is made here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from torch import Tensor, nn

from ...models.streamed import weights_of
from ..base import CalibrationData
from . import in_memory, sequential_statistics
from .in_memory import GRAM_BYTES
from .moments import GradientRule, Moments


def input_moments(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    limit_bytes: int = GRAM_BYTES,
    grams: bool = True,
) -> Iterator[tuple[str, Moments]]:
    """Yield the moments of each linear layer's input, in the order of the names.

    Layers that are given the very same tensor (q, k, v; gate, up) share one Gram matrix. Matrices are taken in chunks
    whose Gram matrices fit into ``limit_bytes`` (8·n² bytes each); each chunk is one pass over the data that ends at
    its last layer, so memory does not grow with the number of layers. A streamed model is read block by block
    instead, in one pass. All layers see the dense model's activations.

    Args:
        model: the model; not changed.
        names: dotted names of ``nn.Linear`` modules.
        data: task data.
        samples: examples to use, or None for all.
        batch_size: examples per forward pass; changes the result by rounding only.
        limit_bytes: see above; one matrix at least is taken at a time.
        grams: False leaves the Gram matrices empty (0, 0).
    """
    if is_streamed(model):
        return sequential_statistics.input_moments(model, names, data, samples, batch_size, grams)
    return in_memory.input_moments(model, names, data, samples, batch_size, limit_bytes, grams)


def gradient_grams(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    limit_bytes: int = GRAM_BYTES,
    rule: GradientRule = GradientRule(),
    diagonal: Collection[str] = (),
) -> Iterator[tuple[str, Tensor]]:
    """Yield R = Σ_t g_t g_tᵀ (m, m), float64, over tokens; g_t is the gradient of the loss by a layer's output.

    The loss is the sum over all target tokens of the calibration examples, labels shifted once; gradients are taken per
    token (a sum over tokens first would leave R of rank one per example). Memory as in `input_moments`.

    Args:
        model, data, samples, batch_size, limit_bytes: as in `input_moments`.
        names: dotted names of ``nn.Linear`` modules, and of the token embedding.
        rule: which tokens' gradients count, and how large they may be.
        diagonal: names of which only the diagonal of R (m,) is wanted, such as a head's.
    """
    if is_streamed(model):
        return sequential_statistics.gradient_grams(model, names, data, samples, batch_size, rule, diagonal)
    return in_memory.gradient_grams(model, names, data, samples, batch_size, limit_bytes, rule, diagonal)


def input_fisher(
    model: nn.Module,
    names: Sequence[str],
    data: CalibrationData,
    samples: int | None,
    batch_size: int = 8,
    axis: Literal["in", "out"] = "in",
) -> dict[str, Tensor]:
    """Return the diagonal empirical Fisher information of each weight, summed over one axis.

    f_j = mean over examples of Σ_i (∂L_example/∂W_ij)², with the gradient of each example's own loss (not of the
    batch's, in which gradients cancel).

    Args:
        model: the model; weights are not changed.
        names: dotted names of ``nn.Linear`` modules, and of the token embedding, whose gradient is that of its lookup
            and of a head that is tied to it together.
        data: task data.
        samples: examples to use, or None for all.
        batch_size: examples per forward pass; the result does not depend on it.
        axis: ``in`` sums over outputs and gives (n,), ``out`` sums over inputs and gives (m,). What enters a lookup is
            a token: of an embedding (V, d) ``in`` gives (V,) and ``out`` (d,).

    Returns:
        float32 vectors on the CPU by name.
    """
    if is_streamed(model):
        return sequential_statistics.input_fisher(model, names, data, samples, batch_size, axis)
    return in_memory.input_fisher(model, names, data, samples, batch_size, axis)


def is_streamed(model: nn.Module) -> bool:
    """Whether the model's weights stay on disk (`models.streamed`)."""
    return weights_of(model) is not None
