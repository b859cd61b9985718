"""A low-rank correction of what rounding a dense model changed.

W ≈ Q(W) + B A, where B A is the rank-r approximation of W - Q(W) that minimises ‖(W - Q(W) - B A) X‖_F on calibration
inputs X: the whitened problem of `library.svd_llm`, with the rounding error in place of W. LQER (Zhang et al., ICML
2024, arXiv 2402.02446) weighs inputs by their mean magnitude instead, EoRA (Liu et al., 2024, arXiv 2410.21271) by the
eigenvectors of the same Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..foundation.progress import track
from ..models.quantised.model import Corrections
from ..models.quantised.rounding import from_groups, group_for, round_groups
from ..models.quantised.scheme import Correction, Scheme
from .base import CalibrationData, create_method
from .matrixwise import MatrixCompressor


def corrector(correction: Correction) -> MatrixCompressor:
    """Return the method that gathers statistics and decomposes rounding errors: svd-llm, or svd without whitening."""
    reading = {"samples", "batch_size", "calibration", "length"} if correction.whiten else set()
    method = create_method("svd-llm" if correction.whiten else "svd", correction.model_dump(include=reading))
    assert isinstance(method, MatrixCompressor)
    return method


def corrections(
    model: torch.nn.Module,
    scheme: Scheme,
    correction: Correction,
    data: CalibrationData | None = None,
    stored: Callable[[str, Tensor], Tensor] = lambda _, weight: weight,
) -> Corrections:
    """Return the factors that bring each rounded matrix nearest to what it was; the model is left unchanged.

    Every input is the dense model's, as in svd-llm. The token embedding gets no correction: it has no inputs to be
    weighed by.

    Args:
        model: dense, in float32.
        scheme: how it is going to be rounded.
        correction: with the rank.
        data: calibration examples, for a whitened one.
        stored: gives the weight (m, n) of a name as it is stored; the error is counted from there.

    Returns:
        A (r, n) and B (m, r) in float32 by the matrix's name, r at most min(m, n); none at rank 0.

    Raises:
        ValueError: a weight or a statistic holds a NaN or an infinity.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    if not correction.rank:
        return factors
    method = corrector(correction)
    groups = method.groups(model)
    for group, statistic in track(method.collect(model, data, groups), len(groups), "matrices"):
        weight = stored(f"{group.name}.weight", group.weight(model)).float()
        columns = group_for(group.in_features, scheme.group)
        error = weight - from_groups(*round_groups(weight, scheme.bits, columns), columns)
        rank = min(correction.rank, *error.shape)
        factors[group.name] = method.decompose(error, statistic, rank).first(rank).truncate(rank)
    return factors
