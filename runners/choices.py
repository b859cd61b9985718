"""What a plan takes where the user leaves the choice: the device, the recipe, a method's options, training settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..foundation.errors import UserError, unknown
from ..foundation.processor import native_bfloat16
from ..methods.base import Compressor, create_method
from ..models.presets import ModelSource
from .config import MethodSpec
from .training.recipes import RECIPES, SMALL_MODEL_PARAMETERS, Recipe
from .training.settings import TrainSettings


def pick_device(asked: str) -> str:
    """Return the torch device for ``auto`` or the one that was named.

    Raises:
        UserError: a device that is not there.
    """
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    available += [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if asked not in available:
        raise UserError(
            f"the device '{asked}' is not there (there is {', '.join(available)}); use --device cpu, or auto to take a "
            "GPU where one is"
        )
    return asked


@dataclass(frozen=True)
class DtypeChoice:
    """The dtype of an evaluation's arithmetic, and why it is not the default; empty where it is."""

    dtype: str
    why: str = ""


def pick_dtype(asked: str | None, default: str, device: str) -> DtypeChoice:
    """Return the dtype that was asked for, else the default, but float32 where a CPU would emulate bfloat16.

    Args:
        asked: ``--dtype``, or None.
        default: the recipe's, or the checkpoint's own.
        device: torch device of the evaluations.
    """
    if asked or default != "bfloat16" or device != "cpu" or native_bfloat16():
        return DtypeChoice(asked or default)
    return DtypeChoice(
        "float32",
        "evaluations compute in float32 instead of bfloat16, because this machine's CPU has neither AVX512-BF16 nor "
        "AMX-BF16 and would emulate it; --dtype bfloat16 takes it all the same",
    )


def pick_calibration_dtype(asked: str, stored: str, device: str) -> DtypeChoice:
    """Return the dtype of the passes that statistics are gathered from.

    Args:
        asked: ``--calibration-dtype``, or ``auto``: bfloat16 on a GPU for weights stored in 16 bits, else float32.
        stored: dtype that the model's weights are stored in.
        device: torch device of the fits.
    """
    if asked != "auto":
        return DtypeChoice(asked)
    if stored not in ("bfloat16", "float16") or not device.startswith("cuda"):
        return DtypeChoice("float32")
    return DtypeChoice(
        "bfloat16",
        "fits gather their statistics by bfloat16 autocast, as trainings on a GPU compute, because the model's weights "
        "are stored in 16 bits; --calibration-dtype float32 gathers them in float32",
    )


def pick_recipe(asked: str, source: ModelSource, parameters: int) -> str:
    """Return the name of the recipe: the one named, the preset's, or by model size."""
    if asked == "auto":
        return source.recipe or ("small" if parameters < SMALL_MODEL_PARAMETERS else "paper")
    if asked not in RECIPES:
        raise unknown("recipe", asked, [*RECIPES, "auto"])
    return asked


def build_method(spec: MethodSpec, recipe: Recipe, seed: int) -> Compressor:
    """Build a method with the recipe's defaults for it, the user's options over them, and the sweep's seed."""
    options = {**recipe.method_options.get(spec.name, {}), **spec.options}
    method = create_method(spec.name, options)
    if "seed" in type(method).model_fields and "seed" not in spec.options:
        method = create_method(spec.name, options | {"seed": seed})
    return method


def merge_settings(base: TrainSettings, *changes: Mapping[str, Any]) -> TrainSettings:
    """Return the settings with changes, later ones last; epochs given without steps unset the recipe's steps."""
    given = {key: value for change in changes for key, value in change.items() if value is not None}
    if "batch_size" in given and "micro_batch_size" not in given:
        given["micro_batch_size"] = min(given["batch_size"], base.micro_batch_size)
    if "epochs" in given and "steps" not in given:
        given["steps"] = None
    return TrainSettings(**(base.model_dump() | given))
