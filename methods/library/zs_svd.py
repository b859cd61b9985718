"""Whitened SVD whose dropped components leave the task's loss unchanged to first order, with corrections.

ZS-SVD (arXiv 2602.02848; mint-vu/Zero-Sum-SVD, no licence: facts from its code, no code of it). The factors are
SVD-LLM's; the ranks are those of the policy ``zero-sum``. A correction moves the truncated weights along the gradient
of the loss by the projection of what truncation took away, W_r + ⟨g, W - W_r⟩ / ⟨g, g⟩ g, all matrices at once; then
everything is measured and truncated again from full rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base import CalibrationData, CompressionReport, Trainer, methods
from ..fitted import Fitted
from ..groups import Group
from ..ranks.budget import Budget
from ..ranks.probe import PROBE_BATCH, Examples
from ..ranks.slopes import weight_gradients
from ..requirements import Requirements
from .svd_llm import Whitened


@methods.register("zs-svd")
class ZSSVD(Whitened):
    """SVD-LLM's factors under the policy ``zero-sum``, with corrections between truncations.

    Args:
        corrections: how often the truncated model is corrected and compressed again, for each ratio (authors: 5).
        correction_samples: examples of the gradient at the truncated weights (authors: 1).
    """

    requires = Requirements(
        statistics=True,
        gradients=True,
        measures=True,
        policy="zero-sum",
        ranks="dropped changes of the loss add up to zero",
        embeddings=True,
        paper="arXiv 2602.02848",
        status="code",
        note="written after the authors' code; not verified at 7B",
    )

    policy: str = "zero-sum"
    probe_samples: int = Field(default=256, ge=1)
    corrections: int = Field(default=0, ge=0)
    correction_samples: int = Field(default=64, ge=1)

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs; a correction looks at the model for each ratio."""
        requirements = super().requirements
        if not self.corrections:
            return requirements
        return replace(requirements, searches=True, gradients=True, layer_by_layer=False)

    def fit_key(self) -> dict[str, object]:
        """Leave out what only `compress` reads."""
        return {k: v for k, v in super().fit_key().items() if k not in ("corrections", "correction_samples")}

    def fit_for(
        self, budget: Budget, model: nn.Module, data: CalibrationData | None, folder: Path | None = None
    ) -> Fitted:
        """Keep full rank where corrections need it."""
        return self.fit(model, data, folder) if self.corrections else super().fit_for(budget, model, data, folder)

    def kept_ranks(self, model: nn.Module, budgets: Sequence[Budget]) -> dict[str, int] | None:
        """Keep full rank where corrections need it."""
        return None if self.corrections else super().kept_ranks(model, budgets)

    def compress(
        self,
        model: nn.Module,
        fitted: Fitted,
        budget: Budget,
        trainer: Trainer | None = None,
        data: CalibrationData | None = None,
    ) -> CompressionReport:
        """Truncate, and correct and truncate again as often as is asked for."""
        if not self.corrections:
            return super().compress(model, fitted, budget, trainer, data)
        if data is None:
            raise ValueError("zs-svd's corrections need task data")
        groups = self.groups(model)
        once = self.model_copy(update={"corrections": 0})
        examples = Examples(data, self.correction_samples, PROBE_BATCH, model)
        # Copies: the model's own weights are overwritten, and each correction is measured from the dense ones.
        dense = {group.name: stored(model, group) for group in groups}
        for _ in range(self.corrections):
            ranks = once.allocation(model, fitted, budget, data).ranks
            for group in groups:
                if group.name in ranks:
                    a, b = fitted.factors(group.name).truncate(ranks[group.name])
                    overwrite(model, group, b @ a)
            gradients = weight_gradients(model, groups, examples.batches)
            for group in groups:
                # A matrix that stays dense in the first round has W - W_r = 0 and is not moved.
                overwrite(model, group, corrected(stored(model, group), dense[group.name], gradients.pop(group.name)))
            fitted = once.fit(model, data)
        done = once.compress(model, fitted, budget, trainer, data)
        done.details["corrections"] = self.corrections
        return done


def corrected(truncated: Tensor, dense: Tensor, gradient: Tensor) -> Tensor:
    """Return W_r + ⟨g, W - W_r⟩ / ⟨g, g⟩ g in float32; W_r itself where the gradient is zero.

    The authors add 1e-6 to ⟨g, g⟩; here nothing, so that it does not depend on the scale of the loss.

    Args:
        truncated, dense, gradient: W_r, W and g (m, n).
    """
    wide, g = truncated.double(), gradient.double()
    square = float(g.square().sum())
    if not square > 0:
        return truncated.float()
    return (wide + float((g * (dense.double() - wide)).sum()) / square * g).float()


def stored(model: nn.Module, group: Group) -> Tensor:
    """Return a copy of a group's stacked weight (Σm, n), float32."""
    return group.weight(model).detach().clone()


@torch.no_grad()
def overwrite(model: nn.Module, group: Group, weight: Tensor) -> None:
    """Write a stacked weight (Σm, n) into a group's layers."""
    for matrix, rows in zip(group.members, group.split(weight), strict=True):
        own = model.get_submodule(matrix.name).weight
        assert isinstance(own, Tensor)
        own.copy_(rows)
