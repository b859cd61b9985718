"""Whitened SVD that lets each layer make up for what compressing those before it changed.

AA-SVD (arXiv 2604.02119; authors' code under MIT). x are the inputs of a layer in the dense model, x̂ those in the model
compressed so far. min ‖W X - BA X̂‖_F is min ‖(T - BA) X̂‖_F with T = W (X X̂ᵀ)(X̂ X̂ᵀ)⁻¹, the weight that fits best
at full rank; so the core is `whiten` again, of T. β between 0 (T = W; the authors' objective 3) and 1 (objective 4)
mixes the two second moments, which is SAES-SVD. X̂ = X is SVD-LLM (objective 2).

Nothing before a lookup is compressed, so X̂ = X there: the embedding's factors are SVD-LLM's, and come first.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ...foundation.errors import UserError
from ...foundation.finite import all_finite
from ...foundation.limits import MAX_LEARNING_RATE
from ..base import CalibrationData, CompressionReport, Trainer, methods
from ..calibration.two_streams import Pairs, TwoStreams
from ..estimates import calibration_passes
from ..fitted import Factors, Fitted
from ..linalg.whitening import root, whiten
from ..matrixwise import install, report
from ..ranks.budget import Budget
from ..requirements import Requirements
from .svd_llm import Whitened

_REFINED_AT_ONCE = 32
"""Examples in a batch of the refinement, as in the authors' code."""


@methods.register("aa")
class AASVD(Whitened):
    """min ‖W X - BA X̂‖ block by block, with X̂ the inputs in the model compressed so far; ranks as for svd-llm.

    Args:
        beta: share of Σ x x̂ᵀ in the second moments that W is multiplied with; the rest is Σ x̂ x̂ᵀ.
        stream: ``compressed``, or ``dense`` for X̂ = X in the objective, which is svd-llm.
        ridge: share of the mean diagonal of Σ x̂ x̂ᵀ that is added to it before it is inverted.
        refine_passes: passes over the calibration data in which all of a compressed block is trained to give the
            dense block's outputs from its inputs in the model compressed so far, whichever the stream (authors: 25);
            0 for none.
        refine_lr: learning rate of that.
    """

    requires = Requirements(
        statistics=True,
        searches=True,
        embeddings=True,
        layer_by_layer=False,
        paper="arXiv 2604.02119",
        status="formula",
        note="the objective's optimum in tests; not verified at 7B",
    )

    beta: float = Field(default=1.0, ge=0, le=1)
    stream: Literal["compressed", "dense"] = "compressed"
    ridge: float = Field(default=1e-6, ge=0, lt=1)
    refine_passes: int = Field(default=0, ge=0)
    refine_lr: float = Field(default=1e-4, gt=0, le=MAX_LEARNING_RATE)

    @property
    def requirements(self) -> Requirements:
        """Return what the method needs; it reads task data for each ratio."""
        return replace(super().requirements, searches=True)

    def fit_key(self) -> dict[str, Any]:
        """Share the fit of svd-llm; what is this method's own only `compress` reads."""
        own = set(AASVD.model_fields) - set(Whitened.model_fields)
        return {key: value for key, value in super().fit_key().items() if key not in own}

    def compress_versions(self) -> dict[str, int]:
        """Return the policy's, and that of the refinement on dense inputs, whose inputs were others."""
        own = {"aa": 2} if self.stream == "dense" and self.refine_passes else {}
        return super().compress_versions() | own

    def compress(
        self,
        model: nn.Module,
        fitted: Fitted,
        budget: Budget,
        trainer: Trainer | None = None,
        data: CalibrationData | None = None,
    ) -> CompressionReport:
        """Choose ranks from the fit, then decompose block by block on both streams."""
        if data is None:
            raise ValueError("aa needs task data")
        shape, groups = self.shape(model, budget.ratio), {group.name: group for group in self.groups(model)}
        allocation = self.allocation(model, fitted, budget, data)
        streams = TwoStreams(model, list(data.batches(self.samples, self.batch_size)), self.stream == "compressed")
        refined = Refinement(self.refine_passes, self.refine_lr) if self.refine_passes else None

        def put(name: str, shift: Tensor, gram: Tensor) -> None:
            rank = allocation.ranks[name]
            factors = self.shifted(groups[name].weight(model), shift, gram)
            install(model, groups[name], factors, rank)

        rows = next((group for group in groups.values() if group.embedding and group.name in allocation.ranks), None)

        def put_embedding() -> None:
            assert rows is not None
            install(model, rows, fitted.factors(rows.name), allocation.ranks[rows.name])

        names = [name for name, group in groups.items() if name in allocation.ranks and not group.embedding]
        streams.replace_layers(names, put, refined, put_embedding if rows is not None else None)
        done = report(model, shape, list(groups.values()), policy=self.policy, level=allocation.level)
        if refined is not None:  # not steps of the task's training, which compress and recover share
            done.tokens = refined.tokens
            done.details["refine_steps"] = refined.steps
        return done

    def shifted(self, weight: Tensor, shift: Tensor, gram: Tensor) -> Factors:
        """Return the factors of min ‖(T - BA) X̂‖_F.

        Args:
            weight: W (m, n).
            shift: Σ (x - x̂) x̂ᵀ (n, n), float64.
            gram: Σ x̂ x̂ᵀ (n, n), float64.
        """
        inputs = root(gram, self.ridge if self.stream == "compressed" else self.jitter)
        wide = weight.double()
        # T = W (X X̂ᵀ)(X̂ X̂ᵀ)⁻¹ = W + W (X - X̂) X̂ᵀ (X̂ X̂ᵀ)⁻¹: T is W itself where X̂ = X, with any ridge.
        if self.beta and self.stream == "compressed":
            wide = wide + self.beta * torch.cholesky_solve((wide @ shift).T, inputs.lower).T
        return whiten(wide, inputs, side=self.side)


@calibration_passes.register
def _(method: AASVD) -> float:
    """Each block runs to the inputs of its outputs, gates and last matrix, and once to its end: about three passes.

    A refinement's inputs are one more where the objective does without the compressed stream.
    """
    dense, compressed = 3.0, 3.0 if method.stream == "compressed" else float(method.refine_passes > 0)
    return dense + compressed + 3.0 * method.refine_passes


class Refinement:
    """Trains blocks to give the dense blocks' outputs, as in AA-SVD's code: AdamW, clipping, warm-up and cosine.

    Args:
        passes: over the data.
        lr: learning rate after the warm-up of a tenth of the steps; it falls to a tenth.

    Attributes:
        steps: optimizer steps in all blocks together.
        tokens: tokens without padding that these steps read.
    """

    def __init__(self, passes: int, lr: float) -> None:
        self.passes, self.lr, self.steps, self.tokens = passes, lr, 0, 0

    @torch.enable_grad()
    def __call__(self, block: nn.Module, pairs: Pairs) -> None:
        """Train all parameters of a block in place, in float32 whatever their dtype.

        Raises:
            UserError: they are no longer finite.
        """
        dtypes = {name: parameter.dtype for name, parameter in block.named_parameters()}
        block.float()
        first = next(iter(pairs))[2]
        together = max(_REFINED_AT_ONCE // max(len(first), 1), 1)
        updates = math.ceil(len(pairs.streams.batches) / together) * self.passes
        optimizer = torch.optim.AdamW(block.parameters(), lr=self.lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _factor(step, updates))
        for _ in range(self.passes):
            for index, mask, hidden, target in pairs:
                valid = mask.bool()
                error = (pairs.run(block, index, hidden.float()) - target.float())[valid]
                (error.square().mean() / together).backward()
                self.tokens += int(valid.sum())
                if (index + 1) % together == 0 or index + 1 == len(pairs.streams.batches):
                    torch.nn.utils.clip_grad_norm_(block.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
                    self.steps += 1
        for name, parameter in block.named_parameters():
            parameter.data = parameter.data.to(dtypes[name])
            parameter.grad = None
            if not all_finite(parameter.data):
                raise UserError(
                    f"the weights of {pairs.name} are no longer finite after its refinement; lower aa's refine_lr (now "
                    f"{self.lr:g})"
                )


def _factor(step: int, updates: int) -> float:
    warm = max(updates // 10, 1)
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(updates - warm, 1)))
