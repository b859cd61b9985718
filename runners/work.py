"""What each kind of stage does with its folder."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ..evals.base import Benchmark, EvalSettings, Outcome, benchmarks, metric_to_plain
from ..evals.engines.base import Engine
from ..evals.hosting.choice import engine_version
from ..evals.hosting.host import HostedEngine
from ..foundation.environment import number_formats
from ..foundation.errors import UserError
from ..foundation.files import read_json, write_json
from ..foundation.progress import reporting
from ..methods.base import CompressionReport, Compressor, create_method
from ..methods.fitted import Fitted
from ..methods.ranks.budget import Budget
from ..models.dtypes import SaveDtypes, save_dtypes
from ..models.footprint import context_length
from ..models.loading import load_model, load_skeleton, load_tokenizer, weights_size
from ..models.notes import notes_of
from ..models.shards import save_model
from ..models.skeletons import load_exact_skeleton
from .estimates.foreseen import check_training, evaluation_peak, placement_of, plain
from .estimates.memory import Way, compress_way, fit_way, open_model, read_length
from .executors.parallel.launch import train_together
from .provenance import code_digest
from .store.folders import MODEL_FOLDER, REPORT, Stage, input_digests, ratio_folder, resume_folder
from .training.data import TaskData, load_task_data
from .training.memory import training_peak
from .training.recipes import TrainSettings
from .training.resuming import Resumable
from .training.sharding import is_main, process_count, shards
from .training.trainer import Progress, TaskTrainer, compress_order

BASES_FILE = "bases.safetensors"
"""Beside a compressed checkpoint, where a method says which bases survived."""
_WIDE = "float32"  # fit, compress and training work on float32 weights whatever is saved


def perform(stage: Stage, folder: Path, progress: Progress | None = None) -> Mapping[str, Any]:
    """Do one stage inside ``folder``; returns plain data for its record.

    Raises:
        UserError: among others, an environment that asks for other number formats than the one that planned the stage.
    """
    planned, here = stage.config.get("environment", {}), number_formats()
    if planned != here:
        raise UserError(
            f"the sweep was planned with {_listed(planned)} in the environment and this worker on "
            f"{platform.node()} has {_listed(here)}; these variables change numbers, so set the same on all machines"
        )
    seed = int(stage.config.get("seed", 0))
    torch.manual_seed(seed)
    if "accelerate" in stage.runtime:
        return train_together(stage, folder, progress)
    with reporting(progress):
        return _KINDS[stage.kind](stage, folder, progress)


def _listed(variables: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in variables.items()) or "no variable for number formats"


def _opened(stage: Stage, way: Way, folder: Path) -> tuple[Any, Any]:
    where = stage.runtime["model"]
    place = stage.runtime.get("place", stage.runtime["device"])
    model = open_model(way, where["location"], where["revision"], place, folder)
    return model, load_tokenizer(where["location"], where["revision"])


def _way(stage: Stage, choose: Callable[..., Way], method: Compressor, **more: Any) -> tuple[Way, list[str]]:
    where, runtime = stage.runtime["model"], stage.runtime
    skeleton = load_skeleton(where["location"], where["revision"])
    wanted = runtime.get("memory", "auto")
    way = choose(method, skeleton, where["location"], where["revision"], wanted, runtime["device"], **more)
    return way, way.check(stage.title or stage.key, runtime["device"])


def _foreseen(stage: Stage, data: TaskData, skeleton: Any, method: Compressor | None = None) -> dict[str, Any]:
    """Return what the training will take, for the record, with a note where it may not fit.

    Raises:
        UserError: it certainly does not.
    """
    settings, device, processes = training_settings(stage), stage.runtime["device"], process_count()
    longest = max(len(item.input_ids) for item in data.items)
    placement = placement_of(stage, sharded=shards())
    peak = training_peak(skeleton, settings, longest, device, placement, processes, method)
    note = check_training(peak, stage.title or stage.key, settings, device)
    return plain(peak, processes) | ({"warning": note} if note else {})


def _skeleton(stage: Stage) -> tuple[Any, Any]:
    where = stage.runtime["model"]
    place = where["location"], where["revision"]
    return load_exact_skeleton(*place), load_tokenizer(*place)


def _model(stage: Stage) -> Any:
    where = stage.runtime["model"]
    place = stage.runtime.get("place", stage.runtime["device"])
    return load_model(where["location"], where["revision"], _WIDE, place)


def _data(stage: Stage, model: Any, tokenizer: Any) -> TaskData:
    chosen, runtime = stage.config["data"], stage.runtime
    context = context_length(model.config)
    return load_task_data(
        chosen["task"],
        runtime["train_set"] if chosen["task"] == runtime.get("task", chosen["task"]) else None,
        Path(runtime["data"]) if runtime["data"] else None,
        tokenizer,
        chosen["max_length"],
        context,
        stage.config["seed"],
        cut="train" not in stage.config,
    )


def training_settings(stage: Stage) -> TrainSettings:
    """Return the settings of a training stage, with the placement that the plan chose."""
    return TrainSettings(**stage.config["train"] | {"placement": placement_of(stage, sharded=False)})


def _trainer(
    stage: Stage, data: TaskData, progress: Progress | None, resumable: Resumable | None = None
) -> TaskTrainer:
    seed = stage.config["seed"]
    return TaskTrainer(
        data,
        training_settings(stage),
        stage.config.get("extra_pruning_steps", 0),
        stage.runtime["device"],
        compress_order(seed) if stage.kind == "compress" else seed,
        stage.title or stage.key,
        progress,
        resumable,
    )


def _resumable(stage: Stage, folder: Path, method: Compressor | None = None) -> Resumable:
    origin = {"code": code_digest(*([type(method)] if method else [])), "inputs": input_digests(stage)}
    return Resumable(resume_folder(folder.parent, stage.key), stage.runtime["checkpoint_minutes"], folder, origin)


def _save_trained(stage: Stage, trainer: TaskTrainer, model: Any, tokenizer: Any, folder: Path) -> None:
    """Write what one or several processes trained."""
    whole = trainer.whole(model)
    if is_main():
        save_model(whole, tokenizer, folder / MODEL_FOLDER, _dtypes(stage))


def _dtypes(stage: Stage) -> SaveDtypes:
    where = stage.runtime["model"]
    return save_dtypes(stage.config["save_dtype"], where["location"], where["revision"])


def _finetune(stage: Stage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    skeleton, tokenizer = _skeleton(stage)
    data = _data(stage, skeleton, tokenizer)
    memory = _foreseen(stage, data, skeleton)
    model = _model(stage)
    trainer = _trainer(stage, data, progress, _resumable(stage, folder))
    log = trainer.train(model, trainer.total_steps)
    _save_trained(stage, trainer, model, tokenizer, folder)
    return {
        "training": asdict(log),
        "examples": len(data.items),
        "dropped": data.dropped,
        "warnings": [*notes_of(model), *([memory["warning"]] if "warning" in memory else [])],
        "memory": memory,
    }


def _fit(stage: Stage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    method = create_method(stage.runtime["method"], stage.runtime["options"])
    way, notes = _way(stage, fit_way, method, length=read_length(stage))
    model, tokenizer = _opened(stage, way, folder)
    data = _data(stage, model, tokenizer) if "data" in stage.config else None
    if only := stage.config.get("budget"):  # no other ratio will read it: less can be computed
        fitted = method.fit_for(Budget(only["ratio"], method.guard, only["rank_multiple"]), model, data, folder)
    else:
        fitted = method.fit(model, data, folder)
    fitted.save(folder)
    return {
        "matrices": len(method.targets(model)),
        "dropped": data.dropped if data else 0,
        "calibration": fitted.meta.get("calibration", {}) | ({"length": data.length} if data else {}),
        "added_jitter": fitted.meta.get("added_jitter", {}),
        "warnings": [*fitted.meta.get("warnings", []), *notes_of(model), *notes],
        "memory": way.record(),
    }


def _compress(stage: Stage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    method = create_method(stage.config["method"], stage.config["options"])
    way, _ = _way(stage, compress_way, method)
    memory, skeleton_data = way.record(), None
    if "data" in stage.config and "train" in stage.config:
        skeleton, words = _skeleton(stage)
        skeleton_data = _data(stage, skeleton, words)
        memory |= _foreseen(stage, skeleton_data, skeleton, method) | {"why": way.why}
    model, tokenizer = _opened(stage, way, folder)
    fitted = Fitted.load(Path(stage.runtime["fit"]))
    data = skeleton_data or (_data(stage, model, tokenizer) if "data" in stage.config else None)
    trainer = None
    if data is not None and "train" in stage.config:
        trainer = _trainer(stage, data, progress, _resumable(stage, folder, method))
    multiple = stage.config.get("rank_multiple", 1)
    budgets = [Budget(ratio, method.guard, multiple) for ratio in stage.config["ratios"]]

    def emit(budget: Budget, compressed: Any, report: CompressionReport) -> None:
        if not is_main():
            return
        target = folder / ratio_folder(budget.ratio)
        save_model(compressed, tokenizer, target / MODEL_FOLDER, _dtypes(stage))
        write_json(target / REPORT, report.summary())
        if report.tensors:
            save_file(report.tensors, target / BASES_FILE)

    method.compress_path(model, fitted, budgets, trainer, emit, data)
    # From the files, for some may be older than this process.
    reports = {f"{b.ratio:g}": read_json(folder / ratio_folder(b.ratio) / REPORT) for b in budgets if is_main()}
    trained = {"training": asdict(trainer.log)} if trainer and trainer.log else {}
    return {"reports": reports, "memory": memory} | trained


def _recover(stage: Stage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    skeleton, tokenizer = _skeleton(stage)
    data = _data(stage, skeleton, tokenizer)
    memory = _foreseen(stage, data, skeleton)
    model = _model(stage)
    report = read_json(Path(stage.runtime["model"]["location"]).parent / REPORT)
    trainer = _trainer(stage, data, progress, _resumable(stage, folder))
    spent = 0 if trainer.extra_steps else report["steps"]
    log = trainer.train(model, max(trainer.total_steps - spent, 0), report["recover_lr_scale"])
    _save_trained(stage, trainer, model, tokenizer, folder)
    return {"training": asdict(log), "memory": memory}


def asked(stage: Stage) -> tuple[Benchmark, EvalSettings]:
    """Return the benchmark of an evaluate stage, and how it is evaluated."""
    runtime = stage.runtime
    settings = EvalSettings(**(runtime["settings"] | {"data_dir": Path(runtime["data"]) if runtime["data"] else None}))
    return benchmarks.get(stage.config["benchmark"])(), settings


def open_engine(stage: Stage, longest: Callable[[Any, int], int], threads: int) -> HostedEngine:
    """Load the model of an evaluate stage into its engine; see `HostedEngine` for ``longest`` and errors."""
    model, device, dtype = stage.runtime["model"], stage.runtime["device"], stage.config["dtype"]
    revision = model["revision"] or None
    return HostedEngine(stage.config["engine"], model["location"], dtype, device, revision, threads, longest=longest)


def evaluate_with(engine: Engine, stage: Stage, progress: Progress | None) -> Outcome:
    """Evaluate the benchmark of a stage by an engine that holds its model."""
    benchmark, settings = asked(stage)
    return benchmark.evaluate(engine, settings, progress)


def outcome_record(stage: Stage, outcome: Outcome) -> dict[str, Any]:
    """Return what came out of an evaluate stage as plain data, without the samples."""
    return {
        "metrics": [metric_to_plain(metric) for metric in outcome.metrics],
        "dataset_sha256": outcome.dataset_sha256,
        "prompt_sha256": outcome.prompt_sha256,
        "details": outcome.details,
        "variant": outcome.variant or stage.config["variant"],
    }


def sample_lines(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of a file of samples."""
    return (json.dumps(sample, ensure_ascii=False, sort_keys=True) + "\n" for sample in outcome.samples)


def _evaluate(stage: Stage, folder: Path, progress: Progress | None) -> Mapping[str, Any]:
    benchmark, settings = asked(stage)
    benchmark.check(settings)
    skeleton, tokenizer = _skeleton(stage)
    longest = benchmark.longest_sequence(tokenizer, settings, context_length(skeleton.config))
    memory = {}
    if stage.config["engine"] == "transformers":  # vLLM takes what it is given
        peak = evaluation_peak(skeleton, benchmark, settings, longest, stage.config["dtype"], stage.runtime["device"])
        memory = {"memory": plain(peak)}
    engine = open_engine(stage, lambda *_: longest, torch.get_num_threads())
    with engine:
        outcome = evaluate_with(engine, stage, progress)
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(sample_lines(outcome))
    size = weights_size(stage.runtime["model"]["location"], stage.runtime["model"]["revision"])
    return {
        **outcome_record(stage, outcome),
        "engine": {
            "name": engine.engine,
            "version": engine_version(engine.engine),
            "peak_memory_bytes": engine.peak_memory_bytes,
        },
        "parameters": size.parameters,
        "bytes": size.bytes,
        **memory,
    }


_KINDS: dict[str, Callable[[Stage, Path, Progress | None], Mapping[str, Any]]] = {
    "finetune": _finetune,
    "fit": _fit,
    "compress": _compress,
    "recover": _recover,
    "evaluate": _evaluate,
}
