"""Where each training of a plan keeps weights, gradients and moments."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...methods.base import Compressor
from ...models.footprint import context_length
from ..graph import Plan
from .data import example_length
from .memory import TrainingPeak, training_peak
from .placement import Choice, NothingFits, choose_placement, optimizer_name, placed
from .settings import Placement, TrainSettings


class TrainingPlacements:
    """Chooses the placements of one plan's trainings; peaks are computed once.

    Args:
        plan: what is taken and what is refused is noted in its ``trainings`` and ``refusals``.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.peaks: dict[tuple[Any, ...], TrainingPeak] = {}

    def choose(
        self, settings: TrainSettings, title: str, method: Compressor | None = None, ratio: float = 1.0
    ) -> Choice:
        """Choose where a training keeps weights, gradients and moments, and note in the plan what it takes.

        Args:
            settings: of the run.
            title: for messages.
            method: one that trains while it compresses.
            ratio: of the model that is trained; what a compressed one takes is its share of the dense one's.
        """
        setup, device = self.plan.setup, self.plan.device.partition(":")[0]
        longest = example_length(self.plan.config.task, settings.max_length, context_length(self.plan.skeleton.config))

        def foresee(placement: Placement, processes: int) -> TrainingPeak:
            options = None if method is None else method.model_dump_json()
            name = settings, longest, placement, processes, options
            if name not in self.peaks:
                skeleton = self.plan.skeleton
                self.peaks[name] = training_peak(skeleton, settings, longest, device, placement, processes, method)
            peak = self.peaks[name]
            return replace(
                peak, device=peak.device - round(peak.least * (1 - 1 / ratio)), least=round(peak.least / ratio)
            )

        if setup:
            sharded = setup.strategy == "fsdp2" and (method is None or method.requirements.trains_sharded)
            spread: Placement = "fsdp2" if sharded else "device"
            choice = Choice(spread, setup.processes, f"by {setup.processes} processes, as --accelerate asks")
            self.plan.trainings[title] = choice, foresee(spread, setup.processes)
            return Choice("device", 1, "")
        if self.plan.config.execution.executor == "ray" and self.plan.config.training.placement == "auto":
            return Choice("device", 1, "")  # other machines' memory is not known here
        count = self.plan.machine.count
        shares = max(n for n in range(1, count + 1) if settings.batch_size % n == 0)
        if method is not None and not method.requirements.trains_sharded:
            shares = 1
        try:
            choice = choose_placement(
                foresee, self.plan.machine, self.plan.config.training.placement, title, settings.optimizer, shares
            )
        except NothingFits as refusal:
            self.plan.refusals[title] = str(refusal)
            return Choice("device", 1, "")
        if self.plan.assumed is None:
            optimizer_name(placed(settings, choice))  # or 8 bits would fail after the first finetuning
        self.plan.trainings[title] = choice, foresee(choice.placement, choice.processes)
        return choice
