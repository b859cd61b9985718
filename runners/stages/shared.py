"""What several kinds of stage have in common: opening models, reading data, training, saving."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...foundation.progress import Report, in_units
from ...methods.base import Compressor
from ...methods.recoveries.base import Recovery
from ...models.dtypes import SaveDtypes, save_dtypes
from ...models.footprint import context_length
from ...models.loading import load_model, load_skeleton, load_tokenizer
from ...models.shards import save_model
from ...models.skeletons import load_exact_skeleton
from ..estimates.memory import LoadMode, open_model
from ..estimates.stage_peaks import check_training, placement_of, recorded
from ..provenance import code_digest
from ..specs import CompressStage, FitStage, QuantiseStage, Stage, TrainingStage
from ..stage_results import RecordedMemory
from ..store.folders import MODEL_FOLDER, input_digests, resume_folder
from ..training.data import TaskData, load_task_data
from ..training.divergence import require_finite
from ..training.held_out import split_held_out
from ..training.memory import training_peak
from ..training.resuming import Resumable, RunOrigin
from ..training.settings import TrainSettings
from ..training.sharding import is_main, process_count, shards
from ..training.trainer import TaskTrainer, compress_order

_WIDE = "float32"  # training works on float32 weights whatever is saved


def open_for(stage: FitStage | CompressStage, mode: LoadMode, folder: Path) -> Any:
    """Return the model, opened as was chosen."""
    model = stage.execution.model
    return open_model(mode, model.location, model.revision, load_device(stage), folder)


def choose_mode(
    stage: FitStage | CompressStage, choose: Callable[..., LoadMode], method: Compressor, **more: Any
) -> tuple[LoadMode, list[str]]:
    """Return how a stage gets at its model, and notes on memory.

    Args:
        stage: whose model it is.
        choose: `fit_mode` or `compress_mode`, and ``more`` its other arguments.
        method: what reads the model.
    """
    execution, model = stage.execution, stage.execution.model
    skeleton = load_skeleton(model.location, model.revision)
    mode = choose(method, skeleton, model.location, model.revision, execution.memory, execution.device, **more)
    return mode, mode.check(stage.shown, execution.device)


def load_device(stage: Stage) -> str:
    """Return the torch device that a stage's weights are loaded to."""
    elsewhere: str | None = getattr(stage.execution, "load_device", None)
    return elsewhere or stage.execution.device


def estimate_training(
    stage: TrainingStage,
    data: TaskData,
    skeleton: Any,
    method: Compressor | None = None,
    recovery: Recovery | None = None,
) -> RecordedMemory:
    """Return what the training will take, with a warning where it may not fit.

    Args:
        stage: whose settings count.
        data: what is trained on.
        skeleton: what is loaded, on the meta device.
        method: one that trains while it compresses.
        recovery: what trains a compressed model.

    Raises:
        UserError: it certainly does not.
    """
    settings, device, processes = training_settings(stage), stage.execution.device, process_count()
    longest = max(len(item.input_ids) for item in data.items)
    placement = placement_of(stage, sharded=shards())
    trained = skeleton if recovery is None else recovery.trained_skeleton(skeleton)
    peak = training_peak(trained, settings, longest, device, placement, processes, method, loaded=skeleton)
    note = check_training(peak, stage.shown, settings, device)
    memory = recorded(peak, processes)
    return memory.model_copy(update={"warning": note}) if note else memory


def skeleton_of(stage: Stage) -> tuple[Any, Any]:
    """Return the model on the meta device, and its tokenizer."""
    model = stage.execution.model
    return load_exact_skeleton(model.location, model.revision), load_tokenizer(model.location, model.revision)


def model_of(stage: Stage) -> Any:
    """Return the model in float32."""
    model = stage.execution.model
    return load_model(model.location, model.revision, _WIDE, load_device(stage))


def read_data(
    stage: FitStage | TrainingStage | QuantiseStage, model: Any, tokenizer: Any, whole: bool = False
) -> TaskData | None:
    """Return the stage's task data as token ids, None where it reads none.

    Without what a tuned sweep holds out of its trainings, unless the ``whole`` is asked for.
    """
    asked, execution = stage.spec.data, stage.execution
    if asked is None:
        return None
    data = load_task_data(
        asked.task,
        # The set is named for the sweep's task; calibration data of another task have that task's default.
        execution.train_set if asked.task == (execution.task or asked.task) else None,
        execution.data,
        tokenizer,
        asked.max_length,
        context_length(model.config),
        stage.spec.seed or 0,
        cut=stage.train is None,
        chat=asked.chat,
    )
    return split_held_out(data, asked.held_out)[0] if asked.held_out and not whole else data


def training_data(stage: TrainingStage, skeleton: Any, tokenizer: Any, whole: bool = False) -> TaskData:
    """Return what a training reads, as token ids.

    Args:
        stage: whose settings count.
        skeleton: of its model.
        tokenizer: of its model.
        whole: with what is held out.
    """
    data = read_data(stage, skeleton, tokenizer, whole)
    assert data is not None
    return data


def training_settings(stage: TrainingStage) -> TrainSettings:
    """Return the settings of a training stage, with the placement that the plan chose."""
    assert stage.train is not None
    return stage.train.model_copy(update={"placement": placement_of(stage, sharded=False)})


def trainer_for(
    stage: TrainingStage,
    data: TaskData,
    folder: Path,
    report: Report | None,
    part: Compressor | Recovery | None = None,
) -> TaskTrainer:
    """Return the trainer of a stage, which goes on from the checkpoints of an earlier attempt.

    Args:
        stage: whose settings and seed count.
        data: what is trained on.
        folder: of the stage.
        report: called with how many updates are done.
        part: a method that trains while it compresses, or a recovery; it may be of another package.
    """
    minutes = stage.execution.checkpoint_minutes
    assert minutes is not None
    origin = RunOrigin(code_digest(*([type(part)] if part else [])), input_digests(stage))
    seed = stage.spec.seed
    return TaskTrainer(
        data,
        training_settings(stage),
        getattr(stage.spec, "extra_pruning_steps", None) or 0,
        stage.execution.device,
        compress_order(seed) if stage.kind == "compress" else seed,
        stage.shown,
        in_units(report, "steps"),
        Resumable(resume_folder(folder.parent, stage.key), minutes, folder, origin),
        stage.execution.tracking,
    )


def save_trained(stage: TrainingStage, trainer: TaskTrainer, model: Any, tokenizer: Any, folder: Path) -> Any:
    """Write what one or several processes trained; return it, None in those that do not write.

    Raises:
        Diverged: it is not finite.
    """
    whole = trainer.whole(model)
    if not is_main():
        return None
    if log := trainer.log:  # a recovery may have merged what it trained
        rate = training_settings(stage).learning_rate
        require_finite(whole, f"{log.steps} steps of {stage.title}", rate, log.steps, log.tokens)
    save_model(whole, tokenizer, folder / MODEL_FOLDER, dtypes_of(stage))
    return whole


def dtypes_of(stage: TrainingStage) -> SaveDtypes:
    """Return the dtypes that a stage saves its weights in."""
    model = stage.execution.model
    return save_dtypes(stage.spec.save_dtype, model.location, model.revision)
