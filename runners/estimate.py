"""How long a plan will take, before it starts."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping

from .plan import Plan
from .stages import StageStore

_START_SECONDS = 8.0  # a worker's imports
_TRAINING_EFFICIENCY = 0.5  # of a plain matrix product's speed; small models stay far below it
_TOKENS_PER_EXAMPLE = 96  # assumed where no stage has run yet


def past_seconds(store: StageStore, kinds: set[str], *models: str) -> dict[str, float]:
    """Return the mean seconds of finished stages by kind, for stages whose title or runtime has one of these names."""
    sums: dict[str, list[float]] = defaultdict(list)
    if store.root.is_dir():
        from ..foundation.files import read_json

        for file in store.root.glob("*-*/stage.json"):
            kind = file.parent.name.rpartition("-")[0]
            if kind in kinds:
                try:
                    record = read_json(file)
                    where = f"{record.get('runtime')} {record.get('title')}"
                    if any(model in where for model in models):
                        sums[kind].append(float(record["seconds"]))
                except (OSError, ValueError, KeyError, TypeError, AttributeError):
                    continue
    return {kind: sum(values) / len(values) for kind, values in sums.items()}


def stage_seconds(plan: Plan) -> dict[str, float]:
    """Return an estimate for each pending stage: from finished stages of its kind, else from its arithmetic."""
    pending = plan.pending()
    kinds = {plan.stages[key].kind for key in pending}
    past = past_seconds(plan.store, kinds, plan.source.name, plan.source.location)
    speed = 0.0
    result = {}
    for key in pending:
        stage = plan.stages[key]
        if stage.kind in past:
            result[key] = past[stage.kind]
            continue
        speed = speed or _flops_per_second(plan.device)
        result[key] = _arithmetic(stage.kind, stage.config, plan.parameters) / (speed * _TRAINING_EFFICIENCY) + 2.0
    return result


def _arithmetic(kind: str, config: Mapping[str, object], parameters: int) -> float:
    train = config.get("train")
    if isinstance(train, Mapping):
        steps = train["steps"] if train["steps"] is not None else 1000 * train["epochs"]
        return 6.0 * parameters * steps * train["batch_size"] * _TOKENS_PER_EXAMPLE
    if kind == "fit":
        return 20.0 * parameters * parameters**0.5
    return 2.0 * parameters * 1000 * _TOKENS_PER_EXAMPLE


def _flops_per_second(device: str) -> float:
    import torch

    size = 512 if device == "cpu" else 4096
    a = torch.randn(size, size, device=device)
    a @ a
    clock, rounds = time.perf_counter(), 4
    for _ in range(rounds):
        b = a @ a
    float(b[0, 0])
    return rounds * 2.0 * size**3 / (time.perf_counter() - clock)


def wall_seconds(plan: Plan, seconds: Mapping[str, float], workers: int) -> float:
    """Return the wall-clock estimate: the work spread over the workers, not less than the longest chain."""
    chain: dict[str, float] = {}
    for key in plan.stages:
        before = max((chain.get(need, 0.0) for need in plan.needs[key]), default=0.0)
        chain[key] = before + seconds.get(key, 0.0)
    total = sum(seconds.values())
    return max(total / workers, max(chain.values(), default=0.0)) + (_START_SECONDS if seconds else 0.0)
