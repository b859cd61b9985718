"""GPU hours of a reproduction for one H100: finished stages if any, else the arithmetic of every estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...runners.estimates.assumptions import GENERATION_SHARE, PEAK_FLOPS, TOKENS_PER_EXAMPLE, TRAINING_SHARE
from ...runners.estimates.seconds import estimate
from ...runners.estimates.speeds import card_speeds
from ...runners.graph import Plan
from ...runners.progress import duration
from ...runners.training.recipes import SMALL_MODEL_PARAMETERS

GPU = "H100 (SXM, bfloat16)"
BYTES_PER_TRAINED_PARAMETER = 16
"""Weight, gradient and AdamW's two moments, each in float32."""


@dataclass(frozen=True)
class Hours:
    """GPU hours by kind of stage.

    Attributes:
        hours, stages: how long and how many, by kind.
        measured: the kinds whose hours come from finished stages.
        parameters: of the uncompressed model.
        trains: whether anything is trained.
    """

    hours: Mapping[str, float]
    stages: Mapping[str, int]
    measured: frozenset[str]
    parameters: int
    trains: bool

    @property
    def total(self) -> float:
        """All hours."""
        return sum(self.hours.values())

    def sentences(self) -> list[str]:
        """Return the estimate with its assumptions, and what memory training needs."""
        parts = [
            f"{kind} {count} × {duration(3600 * self.hours[kind] / count)}"
            f"{' (measured)' if kind in self.measured else ''}"
            for kind, count in self.stages.items()
        ]
        sentences = [f"about {self.total:,.3g} GPU hours to go: {', '.join(parts) or 'nothing'}."]
        if set(self.stages) - self.measured:
            training = "training 6·N·tokens (8 with gradient checkpointing) at"
            sentences.append(
                f"What is not measured is arithmetic for one {GPU}: {training if self.trains else 'everything at'} "
                f"{100 * TRAINING_SHARE:g} % of {PEAK_FLOPS / 1e12:g} TFLOP/s, generation 2·N·tokens at "
                f"{100 * GENERATION_SHARE:g} %, {TOKENS_PER_EXAMPLE} tokens an example."
            )
        if self.trains and self.stages:
            need = BYTES_PER_TRAINED_PARAMETER * self.parameters / 1e9
            sentences.append(
                f"Training needs about {need:,.0f} GB of GPU memory for weights, gradients and AdamW's moments alone, "
                "on the one GPU that is used here; `bench run --accelerate` trains over several."
            )
        return sentences


def gpu_hours(plan: Plan) -> Hours | None:
    """Return the GPU hours of what is missing; None for models below 50 M parameters, which need no GPU."""
    if plan.parameters < SMALL_MODEL_PARAMETERS:
        return None
    estimated = estimate(plan, card_speeds(PEAK_FLOPS))
    kinds = estimated.by_kind(plan)
    return Hours(
        {kind: seconds / 3600 for kind, (_, seconds, _) in kinds.items()},
        {kind: count for kind, (count, _, _) in kinds.items()},
        frozenset(kind for kind, (_, _, measured) in kinds.items() if measured),
        plan.parameters,
        not plan.config.training.training_free,
    )
