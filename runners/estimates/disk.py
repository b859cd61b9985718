"""How much disk a plan needs, before it starts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...methods.base import create_method
from ...methods.estimates import TRAINED_BYTES, training_checkpoint_bytes
from ...methods.ranks.budget import Budget
from ...models.dtypes import OWN
from ...models.loading import DTYPES, own_dtype
from ...models.matrices import matrices
from ...models.quantised.size import correction_bytes
from ..executors.local import divide_cores
from ..graph import Plan
from ..specs import CompressStage, QuantiseStage, Stage
from ..store.folders import ratio_folder, resume_folder
from ..store.removal import by_fit, keeps_all, readers_of_inputs
from ..training.recipes import SMALL_MODEL_PARAMETERS


def disk_bytes(plan: Plan, keep: str | None = None) -> int:
    """Return the bytes that the pending stages will take at most at one time, checkpoints and factors counted.

    Exact in the order of stages where one runs at a time, as for models of 50 M parameters and more; with several
    workers the stages that run side by side are taken to be neighbours in the plan's order.

    Args:
        plan: of the sweep.
        keep: as in `SweepConfig.keep`; None takes the plan's.
    """
    pending = plan.pending()
    sizes = {key: _stage_bytes(plan, plan.stages[key]) for key in pending}
    if keeps_all(plan, keep):
        return sum(sizes.values()) + checkpoint_bytes(plan)
    return _peak(plan, by_fit(plan, pending), sizes, _resume_bytes(plan, pending))


def disk_sentence(plan: Plan) -> str:
    """Return what the pending stages will take at most, with the plan's ``--keep`` and with the other one."""
    if plan.config.execution.storage:
        return f"at most {disk_bytes(plan) / 1e6:,.0f} MB to go"
    bytes_by_keep = {keep: disk_bytes(plan, keep) for keep in ("all", "needed")}
    chosen, other = ("all", "needed") if keeps_all(plan) else ("needed", "all")
    return (
        f"at most {bytes_by_keep[chosen] / 1e6:,.0f} MB to go with --keep {chosen} "
        f"({bytes_by_keep[other] / 1e6:,.0f} MB with --keep {other})"
    )


def _peak(plan: Plan, pending: list[str], sizes: Mapping[str, int], resuming: Mapping[str, int]) -> int:
    """Run the plan on paper as `run_stages` does; stages end in the order in which they begin."""
    workers, _ = divide_cores(plan.config.execution.workers, plan.device, plan.parameters, len(pending))
    readers, waiting, left = readers_of_inputs(plan), list(pending), set(pending)
    running: list[str] = []
    occupied = most = 0
    while waiting or running:
        ready = next((key for key in waiting if not left.intersection(plan.needs[key])), None)
        if ready is not None and len(running) < workers:
            waiting.remove(ready)
            running.append(ready)
            occupied += sizes[ready] + resuming.get(ready, 0)
            most = max(most, occupied)
            continue
        done = running.pop(0)
        left.discard(done)
        occupied -= resuming.get(done, 0)
        for input_key in plan.reads(done):
            if input_key in readers and not left.intersection(readers[input_key]):
                occupied -= sizes.get(input_key, 0)
    return most


def _stage_bytes(plan: Plan, stage: Stage) -> int:
    own = own_dtype(cast(Any, plan.skeleton).config)
    width = max(DTYPES[own if name == OWN else name].itemsize for name in map(plan.saves, (True, False)))
    if stage.kind == "fit":
        return 4 * 2 * plan.parameters  # float32; the full factors of a square matrix have twice its entries
    if stage.kind in ("finetune", "recover"):
        return int(width * plan.parameters / _ratio(stage))
    if isinstance(stage, QuantiseStage):  # dequantised weights, and packed ones of a byte or less
        before = plan.stages.get(stage.spec.inputs.model.partition("/")[0])
        ratio = _ratio(before) if before is not None and before.kind == "recover" else _ratio(stage)
        rank = stage.spec.correction.rank if stage.spec.correction else 0
        correction = sum(correction_bytes(matrix, rank) for matrix in matrices(plan.skeleton)) if rank else 0
        return int((width + 1) * plan.parameters / ratio) + correction
    if isinstance(stage, CompressStage):
        return sum(int(width * plan.parameters / ratio) for ratio in stage.spec.ratios)
    return 0


def _ratio(stage: Stage) -> float:
    """Return by how much the model that a stage trains is smaller than the uncompressed one."""
    match = re.search(rf"/{ratio_folder(1).removesuffix('1')}([0-9.e+]+)/", stage.spec.inputs.model)
    return float(match[1]) if match else 1.0


def checkpoint_bytes(plan: Plan) -> int:
    """Return what trainings will write at most to be resumed from, beside what lies there of those that were cut off.

    Small models are done before they keep anything. Two checkpoints lie there while the second is written.
    """
    pending = plan.pending()
    workers, _ = divide_cores(plan.config.execution.workers, plan.device, plan.parameters, len(pending))
    # No more trainings run at once than there are workers; at worst they are the largest.
    return sum(sorted(_resume_bytes(plan, pending).values())[-workers:])


def _resume_bytes(plan: Plan, pending: Sequence[str]) -> dict[str, int]:
    """Return what each training will write to be resumed from, by key."""
    if plan.parameters < SMALL_MODEL_PARAMETERS or not math.isfinite(plan.config.execution.checkpoint_minutes):
        return {}
    more = {}
    for key in pending:
        if plan.stages[key].train is not None:
            occupied = sum(
                file.stat().st_size for file in resume_folder(plan.store.root, key).rglob("*") if file.is_file()
            )
            more[key] = max(0, 2 * _one_checkpoint(plan, plan.stages[key]) - occupied)
    return more


def _one_checkpoint(plan: Plan, stage: Stage) -> int:
    if not isinstance(stage, CompressStage):
        return int(TRAINED_BYTES * plan.parameters / _ratio(stage))
    method = create_method(stage.spec.method, stage.spec.options)
    sharded = plan.setup is not None and plan.setup.strategy == "fsdp2"
    return training_checkpoint_bytes(method, plan.skeleton, Budget(max(stage.spec.ratios), method.guard), sharded)
