"""What a compression did to the bases of every matrix: kept, grown, died, freed, new."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..foundation.errors import UserError
from .fitted import Fitted
from .library.bs.run import STATES

GROWTH = 0.01
"""A kept basis has grown when training raised its singular value by more than this share; less is training noise."""


@dataclass(frozen=True)
class Fate:
    """The bases of one matrix before and after.

    Attributes:
        before: (k,) the spectrum of the fit, descending.
        after: (k,) the trained singular values, NaN where a basis is gone; None where the method trains no bases.
        states: ``kept``, ``grew``, ``died`` or ``freed`` for each of the k; ``kept`` excludes those that grew.
        new: (d,) singular values of the vectors that training added.
    """

    before: Tensor
    after: Tensor | None
    states: tuple[str, ...]
    new: Tensor


def trained_fates(tensors: Mapping[str, Tensor]) -> dict[str, Fate]:
    """Read what Basis Selection stored beside its checkpoint (`library.bs.run.PruningRun.bases`), by matrix."""
    names = [key.removesuffix(".before") for key in tensors if key.endswith(".before")]
    return {
        name: _trained(*(tensors[f"{name}.{part}"] for part in ("before", "after", "state", "new"))) for name in names
    }


def _trained(before: Tensor, after: Tensor, state: Tensor, new: Tensor) -> Fate:
    kept = state == STATES.index("kept")
    grew = kept & (after > before * (1 + GROWTH))
    states = tuple("grew" if g else STATES[s] for s, g in zip(state.tolist(), grew.tolist(), strict=True))
    return Fate(before, torch.where(kept, after, torch.full_like(after, torch.nan)), states, new)


def truncated_fates(fitted: Fitted, ranks: Mapping[str, int], dense: Mapping[str, str]) -> dict[str, Fate]:
    """Compare ranks with full spectra, for methods that truncate and train no bases.

    Args:
        fitted: spectra of all matrices.
        ranks: of the factorised ones.
        dense: those that stayed whole.

    Raises:
        UserError: matrices share their factors, so that no basis belongs to one of them.
    """
    fates = {}
    for name in [*ranks, *dense]:
        if not fitted.has(f"{name}.spectrum"):
            raise UserError(
                f"the method decomposes several matrices together, so '{name}' has no bases of its own; inspect a "
                "method that decomposes one matrix at a time, such as svd or bs"
            )
        before = fitted.spectrum(name).float()
        kept = ranks.get(name, len(before))
        states = ("kept",) * kept + ("died",) * (len(before) - kept)
        fates[name] = Fate(before, None, states, torch.empty(0))
    return fates
