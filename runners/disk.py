"""How much disk a plan needs, before it starts."""

from __future__ import annotations

import math
from typing import Any, cast

from ..methods.base import TRAINED_BYTES, create_method
from ..methods.budget import Budget
from ..models.dtypes import OWN
from ..models.loading import DTYPES, own_dtype
from .local import crew_size
from .plan import Plan
from .recipes import SMALL_MODEL_PARAMETERS
from .stages import Stage, resume_folder


def disk_bytes(plan: Plan) -> int:
    """Return the bytes that the pending stages will write at most, checkpoints and factors counted."""
    own = own_dtype(cast(Any, plan.skeleton).config)
    width = max(DTYPES[own if name == OWN else name].itemsize for name in map(plan.saves, (True, False)))
    total = 0
    for key in plan.pending():
        stage = plan.stages[key]
        if stage.kind == "fit":
            total += 4 * 2 * plan.parameters
        elif stage.kind in ("finetune", "recover"):
            total += width * plan.parameters
        elif stage.kind == "compress":
            total += sum(int(width * plan.parameters / ratio) for ratio in stage.config["ratios"])
    return total + checkpoint_bytes(plan)


def checkpoint_bytes(plan: Plan) -> int:
    """Return what trainings will write at most to be resumed from, beside what lies there of those that were cut off.

    Small models are done before they keep anything. Two checkpoints lie there while the second is written.
    """
    if plan.parameters < SMALL_MODEL_PARAMETERS or not math.isfinite(plan.config.checkpoint_minutes):
        return 0
    pending = plan.pending()
    more = []
    for key in pending:
        if "train" in plan.stages[key].config:
            held = sum(file.stat().st_size for file in resume_folder(plan.store.root, key).rglob("*") if file.is_file())
            more.append(max(0, 2 * _one_checkpoint(plan, plan.stages[key]) - held))
    workers, _ = crew_size(plan.config.workers, plan.device, plan.parameters, len(pending))
    return sum(sorted(more)[-workers:])


def _one_checkpoint(plan: Plan, stage: Stage) -> int:
    if stage.kind != "compress":
        return TRAINED_BYTES * plan.parameters
    method = create_method(stage.config["method"], stage.config["options"])
    sharded = plan.setup is not None and plan.setup.strategy == "fsdp2"
    return method.checkpoint_bytes(plan.skeleton, Budget(max(stage.config["ratios"]), method.guard), sharded)
