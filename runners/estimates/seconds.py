"""How long a plan will take, before it starts: from finished stages, else by arithmetic and the machine's speed."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...evals.hosting.host import REUSE_BYTES
from ...foundation.errors import UserError
from ...foundation.files import read_json
from ...models.loading import DTYPES
from ..executors.local import divide_cores
from ..graph import Plan
from ..specs import (
    CompressSpec,
    EvaluateSpec,
    EvaluateStage,
    FitSpec,
    QuantiseSpec,
    RecoverSpec,
    Spec,
    Stage,
    TrainedSpec,
)
from ..stage_records import StageRecord, parse_record
from ..store.files import RECORD
from ..store.folders import StageStore
from .arithmetic import Arithmetic
from .assumptions import VLLM_START_SECONDS
from .probe import tokenizer_seconds
from .speeds import Speeds, card_speeds, cpu_speeds

_START_SECONDS = 8.0  # a worker's imports


@dataclass(frozen=True)
class Estimate:
    """Seconds of the pending stages.

    Attributes:
        seconds: by stage key, each on the devices that it has; on several GPUs a training is taken to be as many times
            faster.
        measured: keys whose seconds are those of finished stages like them.
    """

    seconds: Mapping[str, float]
    measured: frozenset[str]

    def by_kind(self, plan: Plan) -> dict[str, tuple[int, float, bool]]:
        """Return for each kind of stage how many are pending, their seconds, and whether all were measured."""
        by_kind: dict[str, list[str]] = {}
        for key in self.seconds:
            by_kind.setdefault(plan.stages[key].kind, []).append(key)
        return {
            kind: (len(keys), sum(self.seconds[key] for key in keys), self.measured.issuperset(keys))
            for kind, keys in by_kind.items()
        }


def past_seconds(store: StageStore, model: str, device: str) -> dict[tuple[str, str], float]:
    """Return the mean seconds of finished stages by kind and likeness.

    Args:
        store: where they are.
        model: identity of the model that they began with; others tell nothing.
        device: torch device; stages on another type of device tell nothing.
    """
    records: dict[str, StageRecord] = {}
    for file in store.root.glob(f"*-*/{RECORD}") if store.root.is_dir() else ():
        with contextlib.suppress(OSError, ValueError, UserError):
            records[file.parent.name] = parse_record(read_json(file), file.parent)
    sums: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records.values():
        device_type = record.execution.device.partition(":")[0]
        if device_type == device.partition(":")[0] and _first_model(record, records) == model:
            sums[record.kind, likeness(record.spec)].append(record.seconds)
    return {alike: sum(values) / len(values) for alike, values in sums.items()}


def _first_model(record: StageRecord, records: Mapping[str, StageRecord]) -> str:
    """Return the identity of the model that a chain of stages began with."""
    # Bounded: records that are damaged could name each other in a circle.
    for _ in range(len(records) + 1):
        identity = record.spec.inputs.model
        before = records.get(identity.partition("/")[0])
        if before is None:
            return identity
        record = before
    return ""


def likeness(spec: Spec) -> str:
    """Return what stages of a kind must have in common for one to tell the seconds of another."""
    method = spec.method if isinstance(spec, CompressSpec) else None
    if isinstance(spec, EvaluateSpec):
        return repr([spec.variant, spec.identity.get("limit"), spec.engine, spec.dtype])
    if isinstance(spec, QuantiseSpec):
        return repr([spec.scheme.bits, spec.correction and spec.correction.whiten])
    if isinstance(spec, TrainedSpec | CompressSpec) and (train := spec.train) and spec.data:
        size = [train.steps, None if train.steps is not None else train.epochs, train.batch_size]
        trained = [spec.recovery] if isinstance(spec, RecoverSpec) else []
        return repr([method, *size, spec.data.source, spec.data.max_length, *trained])
    return repr([method, spec.fit.get("factors") if isinstance(spec, FitSpec) else None])


def estimate(plan: Plan, speeds: Speeds | None = None) -> Estimate:
    """Return an estimate for each pending stage.

    Args:
        plan: the plan.
        speeds: of the machine; None takes the plan's, which is probed if it is this one and something is pending of
            which no finished stage tells.
    """
    pending = plan.pending()
    past = {} if plan.assumed else past_seconds(plan.store, plan.source.sha256, plan.device)
    arithmetic = Arithmetic(plan)
    seconds, measured = {}, set()
    for key in pending:
        stage = plan.stages[key]
        alike = past.get((stage.kind, likeness(stage.spec)))
        if alike is not None:
            seconds[key] = alike
            measured.add(key)
            continue
        speeds = speeds or plan_speeds(plan)
        together = stage.accelerate.processes if stage.accelerate and plan.device != "cpu" else 1
        seconds[key] = speeds.seconds(arithmetic.work(key)) / together + speeds.start + _engine_start(plan, stage)
    return Estimate(seconds, frozenset(measured))


def _engine_start(plan: Plan, stage: Stage) -> float:
    """Return the seconds until vLLM is there on a CPU; after a small model its process waits for the next one."""
    if not isinstance(stage, EvaluateStage) or stage.spec.engine != "vllm" or plan.device != "cpu":
        return 0.0
    return VLLM_START_SECONDS if plan.parameters * DTYPES[plan.dtype].itemsize > REUSE_BYTES else 0.0


def plan_speeds(plan: Plan) -> Speeds:
    """Return the speeds of the machine that a plan is for."""
    if plan.machine.flops is not None:
        return card_speeds(plan.machine.flops)
    _, threads = divide_cores(plan.config.execution.workers, plan.device, plan.parameters, len(plan.stages))
    text = cast(Any, plan.skeleton).config.get_text_config()
    loading = tokenizer_seconds(plan.source) if plan.at_hand.tokenizer else 0.0
    return cpu_speeds(DTYPES[plan.dtype], int(getattr(text, "num_hidden_layers", None) or 1), threads, loading)


def stage_seconds(plan: Plan) -> dict[str, float]:
    """Return the estimated seconds of each pending stage."""
    return dict(estimate(plan).seconds)


def wall_seconds(plan: Plan, seconds: Mapping[str, float], workers: int) -> float:
    """Return the wall-clock estimate: the work spread over the workers, not less than the longest chain."""
    chain: dict[str, float] = {}
    for key in plan.stages:
        before = max((chain.get(need, 0.0) for need in plan.needs[key]), default=0.0)
        chain[key] = before + seconds.get(key, 0.0)
    total = sum(seconds.values())
    return max(total / workers, max(chain.values(), default=0.0)) + (_START_SECONDS if seconds else 0.0)
