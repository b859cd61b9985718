"""Rounding the weights of a checkpoint, after all training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ...methods.calibration.driver import few_tokens
from ...methods.calibration.precision import passes_in
from ...methods.correction import corrections, corrector
from ...models.configs import load_config
from ...models.dtypes import SaveDtypes, rounded, save_dtypes
from ...models.loading import load_model, own_dtype
from ...models.notes import notes_of
from ...models.quantised.folder import write_packed
from ...models.quantised.model import Corrections
from ...models.quantised.model import quantise as round_weights
from ...models.quantised.scheme import PACKED_FILE
from ...models.shards import save_model
from ..estimates.memory import calibration_of, quantise_mode
from ..specs import QuantiseStage
from ..stage_results import QuantiseResult
from ..store.folders import MODEL_FOLDER
from ..training.data import TaskData
from .shared import read_data, skeleton_of


def quantise(stage: QuantiseStage, folder: Path) -> QuantiseResult:
    """Round a model, write what is evaluated and what is counted.

    ``model/`` holds dequantised weights, which any engine loads; ``packed.safetensors`` holds the integers and scales,
    and the factors of a correction.
    """
    spec, model_input = stage.spec, stage.execution.model
    dtypes = save_dtypes(spec.save_dtype, model_input.location, model_input.revision)
    # Rounded from the weights as they are stored; in one dtype they need not be widened for that. A correction is made
    # of float32 passes, as a fit is.
    width = "auto" if dtypes.is_uniform and spec.correction is None else "float32"
    own = own_dtype(load_config(model_input.location, model_input.revision)) if width == "auto" else width
    skeleton, tokenizer = skeleton_of(stage)
    data = read_data(stage, skeleton, tokenizer)
    passes = None if spec.correction is None else calibration_of(corrector(spec.correction), data)
    mode = quantise_mode(spec, skeleton, own, stage.execution.device, passes)
    notes = mode.check(stage.shown, stage.execution.device)
    model = load_model(model_input.location, model_input.revision, width, stage.execution.device)
    factors = _correct(stage, model, dtypes, data)
    dtypes.cast(model)  # first: what is rounded and what stays are both of the dtype that is saved
    tensors = round_weights(model, spec.scheme, factors)
    packed = write_packed(tensors, spec.scheme, folder / PACKED_FILE)
    save_model(model, tokenizer, folder / MODEL_FOLDER, dtypes)
    warnings, reading = [*notes_of(model), *notes], data.reading() if data else {}
    if reading:
        warnings += few_tokens(stage.shown, reading["tokens"], max(a.shape[1] for a, _ in factors.values()))
    return QuantiseResult(
        packed_bytes=packed,
        warnings=tuple(warnings),
        memory=mode.record(),
        calibration=reading,
        data_card=data.card if data else None,
    )


def _correct(stage: QuantiseStage, model: Any, dtypes: SaveDtypes, data: TaskData | None) -> Corrections:
    """Return the factors of the stage's correction, none where it has none."""
    correction = stage.spec.correction
    if correction is None:
        return {}

    def stored(name: str, weight: Tensor) -> Tensor:
        return rounded(name, weight, dtypes.of(name))

    with passes_in(stage.spec.calibration_dtype):
        return corrections(model, stage.spec.scheme, correction, data, stored)
