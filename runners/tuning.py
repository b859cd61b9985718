"""Which learning rate of ``--tune`` each method takes at each ratio: that of the least loss on held-out examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..foundation.errors import UserError
from .config.tuning import grid_text
from .evaluation_layout import PlannedModel
from .graph import Plan, Tuned
from .stage_records import CompressRecord, RecoverRecord
from .store.shared import SharedStore
from .training.held_out import HELD_OUT
from .training.settings import TrainSettings


@dataclass(frozen=True)
class Candidate:
    """One learning rate of a grid.

    Attributes:
        run: the training settings with it.
        keys: of the stages on the way, the recover stage among them.
        small, recovered: the compressed model, and what the recovery makes of it.
    """

    run: TrainSettings
    keys: dict[str, str]
    small: PlannedModel
    recovered: PlannedModel


@dataclass(frozen=True)
class Choice:
    """What of a grid goes on to evaluation; ``tuned`` is None while trainings of the grid are not done."""

    candidate: Candidate
    tuned: Tuned | None


def choose(plan: Plan, candidates: Sequence[Candidate], ratio: float, trains: bool) -> Choice:
    """Choose among the trainings of a grid; where some are not done, one of those takes the part of the one to come.

    It has to run anyway: the weights of a rate that is done may have been removed, and are not needed.

    Args:
        plan: whose store has the finished ones.
        candidates: by learning rate, ascending; of equal losses the smallest rate is taken.
        ratio: of the models.
        trains: whether their compressions were trained at the same rate, and count as part of the cost.

    Raises:
        UserError: no rate leaves a finite loss.
    """
    compressions = [candidate.keys["compress"] for candidate in candidates] if trains else []
    recoveries = [candidate.keys["recover"] for candidate in candidates]
    records = _records(plan, recoveries, compressions)
    if records is None:
        # None is missing where a dry run must not bring their records from the storage.
        missing = plan.store.missing(recoveries)
        return Choice(candidates[recoveries.index(missing[0]) if missing else 0], None)
    losses = [_held_out_loss(record) for record in records]
    rates = tuple(candidate.run.learning_rate for candidate in candidates)
    if not math.isfinite(min(losses)):
        raise UserError(
            f"at no learning rate of --tune ({grid_text(rates)}) does '{records[0].title}' keep a finite loss; add "
            f"smaller ones, such as --tune lr={min(rates) / 10:g}"
        )
    tokens = sum(record.result.training.tokens for record in records)
    if trains:
        for key in compressions:
            record = plan.store.record(key)
            assert isinstance(record, CompressRecord)
            if record.result.has_report(ratio):
                tokens += record.result.report(ratio).tokens
            elif record.result.training:  # it diverged, and has no report
                tokens += record.result.training.tokens
    best = losses.index(min(losses))
    return Choice(candidates[best], Tuned(rates, tuple(losses), rates[best], tokens, HELD_OUT))


def _held_out_loss(record: RecoverRecord) -> float:
    """Return the loss that chooses: infinite where the training diverged or the loss is not finite."""
    held_out = record.result.held_out
    return math.inf if held_out is None or held_out.loss is None else held_out.loss


def _records(plan: Plan, keys: Sequence[str], beside: Sequence[str]) -> list[RecoverRecord] | None:
    """Return records of recoveries, None where some are not done; a storage brings those of ``beside`` too."""
    if plan.store.missing(keys):
        return None
    if isinstance(plan.store, SharedStore):
        if plan.dry:
            return None  # their records may be in the storage alone, and a dry run brings nothing here
        plan.store.gather([*keys, *beside])
    records = [plan.store.record(key) for key in keys]
    return [record for record in records if isinstance(record, RecoverRecord)]


def plain_choice(tuned: Tuned) -> dict[str, Any]:
    """Return plain data for a record; a loss that is not finite is null."""
    losses = [loss if math.isfinite(loss) else None for loss in tuned.losses]
    choice = {"lr": tuned.chosen, "grid": list(tuned.grid), "losses": losses}
    return choice | {"tokens": tuned.tokens, "held_out": tuned.held_out}


def tuning_sentence(plan: Plan) -> str:
    """Return what is tuned in a plan and what it costs, or nothing."""
    grid = plan.config.training.tune
    if not grid:
        return ""
    done = "" if plan.provisional else "; all choices are made"
    return (
        f"{grid_text(grid)}: each method is trained at each of {len(grid)} learning rates after compression, at each "
        f"ratio; the least loss on {HELD_OUT:.0%} of the training examples, which nothing is trained on, chooses{done}"
    )
