"""From finished stages to records."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from ..foundation.files import canonical_json
from ..models.loading import DTYPES
from ..records.files import SCHEMA_VERSION, Record
from .choices import build_method
from .graph import BASELINE, Cell, Plan
from .specs import FitStage, RecoverStage
from .stage_records import (
    CompressRecord,
    EvaluateRecord,
    FinetuneRecord,
    QuantiseRecord,
    RecoverRecord,
    StageRecord,
)
from .store.files import RECORD, damaged
from .tuning import plain_choice


def collect(plan: Plan, failed: Collection[str] = ()) -> list[Record]:
    """Return one record per cell, benchmark and metric of a finished sweep, without the evaluations that failed."""
    budgets = _budgets(plan)
    return [record for cell in plan.cells for record in _cell_records(plan, cell, failed, budgets)]


def _budgets(plan: Plan) -> dict[str, int]:
    """Return the steps after the first finetuning by the key of the stage that they are taken from.

    That is the recovery, and the compression where it trains. Without steps in the plan they are counted.
    """
    budgets: dict[str, int] = {}
    for cell in plan.cells:
        budget = cell.budget
        if "recover" in cell.stages:
            recovery, compression = (plan.store.record(cell.stages[kind]) for kind in ("recover", "compress"))
            assert isinstance(recovery, RecoverRecord)
            assert isinstance(compression, CompressRecord)
            if budget is None:
                report = compression.result.report(cell.ratio)
                spent = 0 if recovery.spec.extra_pruning_steps else report.steps
                budget = recovery.result.training.steps + spent
            budgets[cell.stages["recover"]] = budget
            if compression.spec.train is not None:
                budgets[cell.stages["compress"]] = budget
    for cell in plan.cells:  # without a recovery, of the training while compressing
        if "compress" in cell.stages and cell.stages["compress"] not in budgets:
            compression = plan.store.record(cell.stages["compress"])
            assert isinstance(compression, CompressRecord)
            if (train := compression.spec.train) is not None:
                known = cell.budget if cell.budget is not None else train.steps
                budgets[cell.stages["compress"]] = known or compression.result.report(cell.ratio).steps
    return budgets


def _cell_records(plan: Plan, cell: Cell, failed: Collection[str], budgets: Mapping[str, int]) -> list[Record]:
    stages = {kind: plan.store.record(key) for kind, key in cell.stages.items()}
    rows = []
    for title, key in cell.evaluations.items():
        if key in failed:
            continue
        name = title.partition("@")[0]
        evaluation = plan.store.record(key)
        assert isinstance(evaluation, EvaluateRecord)
        try:
            last = cell.stages.get("recover") or cell.stages.get("compress") or ""
            common = _common(plan, cell, stages, evaluation) | {"benchmark": name, "stage_key": key}
            common["steps_budget"] = budgets.get(last, 0)
            common["tuned"] = canonical_json({} if cell.tuned is None else plain_choice(cell.tuned))
            for metric in evaluation.result.metrics:
                fields = asdict(metric)
                rows.append(Record(**common, metric=fields.pop("name"), **fields))
        except (ValueError, KeyError, TypeError, IndexError) as error:  # pydantic's is a ValueError
            raise damaged(plan.store.path(key), f"{RECORD} holds no results of an evaluation") from error
    return rows


def _common(plan: Plan, cell: Cell, stages: Mapping[str, StageRecord], evaluation: EvaluateRecord) -> dict[str, Any]:
    result, hardware = evaluation.result, evaluation.provenance.hardware
    compression, rounded = stages.get("compress"), stages.get("quantise")
    report = compression.result.report(cell.ratio) if isinstance(compression, CompressRecord) else None
    params = report.parameters if report else plan.parameters
    ratio = plan.parameters / params
    kind, _, index = evaluation.execution.device.partition(":")
    values: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "sweep": plan.name,
        "model": plan.source.name,
        "model_sha256": plan.source.sha256,
        "task": plan.config.task,
        "method": cell.method.name,
        "label": cell.label,
        "options": canonical_json({} if cell.method is BASELINE else _options(plan, cell)),
        "stage": cell.state,
        "ratio_target": cell.ratio,
        "ratio": ratio,
        "kept": 1 / ratio,
        "ratio_matrices": report.ratio_matrices if report else 1.0,
        "params_original": plan.parameters,
        "params": params,
        "bytes": rounded.result.packed_bytes if isinstance(rounded, QuantiseRecord) else result.bytes,
        "runtime_bytes": params * DTYPES[evaluation.spec.dtype].itemsize,
        "seed": cell.seed,
        "variant": result.variant or evaluation.spec.variant,
        "confidence": 0.95,
        "engine": evaluation.spec.engine,
        "dtype": evaluation.spec.dtype,
        "device": hardware.gpus[int(index or 0)] if kind == "cuda" else hardware.cpu,
        "threads": hardware.threads,
        "isolation": str(result.details.get("isolation", "")),
        "dataset_sha256": result.dataset_sha256,
        "prompt_sha256": result.prompt_sha256,
        "versions": canonical_json(evaluation.provenance.versions),
        "git_commit": evaluation.provenance.git_commit,
        "evaluated_at": evaluation.ended_at,
        "peak_memory_bytes": max(record.peak_memory_bytes for record in [*stages.values(), evaluation]),
        "seconds_evaluate": evaluation.seconds,
    }
    for kind in ("finetune", "fit", "compress", "recover", "quantise"):
        values[f"seconds_{kind}"] = stages[kind].seconds if kind in stages else 0.0
    for kind in ("finetune", "recover"):
        record = stages.get(kind)
        training = record.result.training if isinstance(record, FinetuneRecord | RecoverRecord) else None
        values[f"steps_{kind}"] = training.steps if training else 0
        values[f"tokens_{kind}"] = training.tokens if training else 0
    values["steps_compress"] = report.steps if report else 0
    values["tokens_compress"] = report.tokens if report else 0
    return values


def _options(plan: Plan, cell: Cell) -> dict[str, Any]:
    if cell.control:
        assert cell.scheme is not None
        correction = {} if cell.correction is None else cell.correction.model_dump(mode="json")
        return cell.scheme.model_dump(mode="json") | correction
    options = build_method(cell.method, plan.recipe, cell.seed).model_dump(mode="json")
    if "seed" not in cell.method.options:
        options.pop("seed", None)  # the sweep's seed has a column of its own
    if plan.config.rank_multiple > 1:
        options["rank_multiple"] = plan.config.rank_multiple
    fit = plan.stages.get(cell.stages.get("fit", ""))
    if isinstance(fit, FitStage) and fit.spec.calibration_dtype != "float32":
        options["calibration_dtype"] = fit.spec.calibration_dtype
    recover = plan.stages.get(cell.stages.get("recover", ""))
    if isinstance(recover, RecoverStage) and recover.spec.recovery != "full":
        options["recovery"] = {"name": recover.spec.recovery, **recover.spec.recovery_options}
    if cell.scheme is not None:
        options["bits"] = cell.scheme.bits
    loaded: dict[str, Any] = json.loads(json.dumps(options))
    return loaded
