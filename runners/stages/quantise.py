"""Rounding the weights of a checkpoint, after all training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models.configs import load_config
from ...models.dtypes import save_dtypes
from ...models.loading import load_model, own_dtype
from ...models.notes import notes_of
from ...models.quantised.folder import PACKED_FILE, write_packed
from ...models.quantised.model import quantise as round_weights
from ...models.shards import save_model
from ..estimates.foreseen import quantise_peak
from ..estimates.memory import Way
from ..specs import QuantiseStage
from ..store.folders import MODEL_FOLDER
from .shared import skeleton_of


def quantise(stage: QuantiseStage, folder: Path) -> Mapping[str, Any]:
    """Round a model, write what is evaluated and what is counted; returns plain data for the record.

    ``model/`` holds dequantised weights, which any engine loads; ``packed.safetensors`` holds the integers and scales.
    """
    spec, model_input = stage.spec, stage.execution.model
    dtypes = save_dtypes(spec.save_dtype, model_input.location, model_input.revision)
    # Rounded from the weights as they are stored; in one dtype they need not be widened for that.
    width = "auto" if dtypes.is_uniform else "float32"
    own = own_dtype(load_config(model_input.location, model_input.revision)) if width == "auto" else width
    skeleton, tokenizer = skeleton_of(stage)
    way = Way(False, "", quantise_peak(skeleton, spec.scheme, own, stage.execution.device))
    notes = way.check(stage.shown, stage.execution.device)
    model = load_model(model_input.location, model_input.revision, width, stage.execution.device)
    dtypes.cast(model)  # first: what is rounded and what stays are both of the dtype that is saved
    tensors = round_weights(model, spec.scheme)
    packed = write_packed(tensors, spec.scheme, folder / PACKED_FILE)
    save_model(model, tokenizer, folder / MODEL_FOLDER, dtypes)
    return {"packed_bytes": packed, "warnings": [*notes_of(model), *notes], "memory": way.record()}
