"""Where each training of a plan keeps weights, gradients and moments."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from torch import nn

from ...foundation.errors import UserError
from ...methods.base import Compressor, create_method
from ...methods.ranks.budget import Budget, allocate_by_shapes
from ...methods.recoveries.base import Recovery
from ...models.checkpoint import put_layers
from ...models.footprint import context_length
from ...models.layout import Layout
from ...models.matrices import embedding_matrix
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
        self.factorised: dict[tuple[bool, float], nn.Module | None] = {}

    def choose(
        self,
        settings: TrainSettings,
        title: str,
        method: Compressor | None = None,
        ratio: float = 1.0,
        recovery: Recovery | None = None,
    ) -> Choice:
        """Choose where a training keeps weights, gradients and moments, and note in the plan what it takes.

        Args:
            settings: of the run.
            title: for messages.
            method: one that trains while it compresses; with a recovery, whatever made the model.
            ratio: of the model that is trained; what a compressed one takes is its share of the dense one's.
            recovery: what trains a compressed model.
        """
        skeleton, loaded, shrunk = self.plan.skeleton, None, ratio
        may_shard = method is None or method.requirements.trains_sharded
        if recovery is not None:
            may_shard = recovery.trains_sharded
            if recovery.name != "full":  # what is trained depends on the factors, not on the dense model's share
                loaded = self._factorised(bool(getattr(method, "embeddings", False)), ratio)
            if loaded is not None:
                skeleton, shrunk = recovery.trained_skeleton(loaded), 1.0
            method = None
        setup, device = self.plan.setup, self.plan.device.partition(":")[0]
        longest = example_length(self.plan.config.task, settings.max_length, context_length(self.plan.skeleton.config))

        def estimate_peak(placement: Placement, processes: int) -> TrainingPeak:
            options = None if method is None else method.model_dump_json()
            trains = None if loaded is None or recovery is None else (ratio, recovery.name, recovery.model_dump_json())
            name = settings, longest, placement, processes, options, trains
            if name not in self.peaks:
                self.peaks[name] = training_peak(
                    skeleton, settings, longest, device, placement, processes, method, loaded
                )
            # The peak is of the dense model, computed once for all ratios. Only what is certain shrinks with the ratio:
            # weights, gradients and state, not the activations.
            peak = self.peaks[name]
            return replace(
                peak, device=peak.device - round(peak.least * (1 - 1 / shrunk)), least=round(peak.least / shrunk)
            )

        if setup:
            sharded = setup.strategy == "fsdp2" and may_shard
            spread: Placement = "fsdp2" if sharded else "device"
            # Only noted: the file of --accelerate decides how weights are spread, so the settings get no placement.
            choice = Choice(spread, setup.processes, f"by {setup.processes} processes, as --accelerate asks")
            self.plan.trainings[title] = choice, estimate_peak(spread, setup.processes)
            return Choice("device", 1, "")
        if self.plan.config.execution.executor == "ray" and self.plan.config.training.placement == "auto":
            choice = Choice("device", 1, "")  # nothing is chosen or refused: the nodes' memory is not known here
            if self.plan.dry:
                self.plan.trainings[title] = choice, estimate_peak("device", 1)
            return choice
        count = self.plan.machine.count
        # The most GPUs among which the batch can be divided evenly, as `TrainSettings.split` asks.
        shares = max(n for n in range(1, count + 1) if settings.batch_size % n == 0)
        if not may_shard:
            shares = 1
        try:
            choice = choose_placement(
                estimate_peak, self.plan.machine, self.plan.config.training.placement, title, settings.optimizer, shares
            )
        except NothingFits as refusal:
            # Raised by `check_plan`, and only where this training has yet to run.
            self.plan.refusals[title] = str(refusal)
            return Choice("device", 1, "")
        if self.plan.assumed is None:
            optimizer_name(placed(settings, choice))  # or 8 bits would fail after the first finetuning
        self.plan.trainings[title] = choice, estimate_peak(choice.placement, choice.processes)
        return choice

    def _factorised(self, embeddings: bool, ratio: float) -> nn.Module | None:
        """Return the model on the meta device with the ranks that a uniform allocation gives it at a ratio.

        None where `svd` does not reach the ratio, which a method that shares factors may.
        """
        name = embeddings, ratio
        if name not in self.factorised:
            skeleton, method = copy.deepcopy(self.plan.skeleton), create_method("svd", {"embeddings": embeddings})
            try:
                ranks = allocate_by_shapes(Budget(ratio), method.shape(skeleton)).ranks
            except UserError:
                self.factorised[name] = None
                return None
            embedding = embedding_matrix(skeleton) if embeddings else None
            heads = {embedding.name: embedding.head} if embedding is not None and embedding.name in ranks else {}
            put_layers(skeleton, Layout(ranks, embeddings=heads))
            self.factorised[name] = skeleton
        return self.factorised[name]
