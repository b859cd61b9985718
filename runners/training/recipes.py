"""Training recipes: what is filled in where the user says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...models.dtypes import OWN
from ...models.footprint import SMALL_PARAMETERS
from .settings import TrainSettings

SMALL_MODEL_PARAMETERS = SMALL_PARAMETERS
"""Models below this size get the recipe ``small`` unless another is named."""


_ON_GPUS = {"adamw_torch": "adamw_torch_fused"}
"""The same update in one kernel, up to rounding; the other keeps copies as large as the parameters meanwhile."""


@dataclass(frozen=True)
class Recipe:
    """A set of defaults.

    Attributes:
        finetune, recover: the two training runs; what methods train with comes out of ``recover``'s steps.
        dtype: of the evaluation's arithmetic.
        save_dtype: of weights that training changed, ``own`` for the model's own (`models.dtypes`); weights that were
            not trained are saved in their own dtype.
        method_options: defaults of single methods, which options given by the user override.
        by_kind: changes to finetune and to recover for tasks of a kind (``instruction``, ``language``).
        train_sets: training set by task, where it is another than the task's default.
    """

    summary: str
    finetune: TrainSettings
    recover: TrainSettings
    dtype: str
    save_dtype: str = OWN
    method_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    by_kind: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    train_sets: Mapping[str, str] = field(default_factory=dict)

    def train_set(self, task: str, asked: str | None) -> str | None:
        """Return the training set that was asked for, else the recipe's for the task; None is the task's default."""
        return asked or self.train_sets.get(task)

    def saves(self, asked: str | None, trains: bool) -> str:
        """Return what `models.dtypes.save_dtypes` is to be asked for.

        Args:
            asked: what the user said, or None.
            trains: whether the step trains the weights that it saves.
        """
        return asked or (self.save_dtype if trains else OWN)

    def for_kind(self, kind: str, device: str = "cpu") -> tuple[TrainSettings, TrainSettings]:
        """Return the two training runs, finetune and recover, for tasks of a kind on a device."""
        first, second = self.by_kind.get(kind, ({}, {}))
        runs = self.finetune.model_copy(update=dict(first)), self.recover.model_copy(update=dict(second))
        if not device.startswith("cuda"):
            return runs
        finetune, recover = (
            run.model_copy(update={"optimizer": _ON_GPUS.get(run.optimizer, run.optimizer)}) for run in runs
        )
        return finetune, recover


_PAPER = TrainSettings()
_SMALL = TrainSettings(
    steps=300,
    learning_rate=1e-3,
    batch_size=16,
    micro_batch_size=16,
    gradient_checkpointing=False,
    precision="float32",
)
# At this size the authors' start of the new vectors loses half of the accuracy at 3x (docs/methods/bs.md).
_SMALL_BASES = {"new_vectors": "top", "additional_share": 0.5}
# What the authors' code does and the method's defaults do otherwise (docs/methods/bs.md).
_AUTHORS_CODE = {
    "bs": {
        "min_lr_rate": 0.1,
        "drop_below": 1e-3,
        "counting": "epoch",
        "prune_before": "forward",
        "threshold": "constant",
    }
}
_FOUR_EXAMPLES = {"batch_size": 4, "micro_batch_size": 4}

RECIPES: dict[str, Recipe] = {
    # The Basis Selection authors' run scripts (their repository is named in docs/methods/bs.md): AdamW, 2e-5, batch
    # 128, cosine, warm-up .03, 512 tokens, 3 epochs before and 1 + 2 + 3 after, which is what the other methods get as
    # recovery.
    "paper": Recipe(
        "the Basis Selection authors' settings",
        _PAPER,
        _PAPER.model_copy(update={"epochs": 6.0}),
        "bfloat16",
        method_options=_AUTHORS_CODE,
    ),
    # An evening for 7 B parameters on one H100 (docs/gpu.md). Only the data are fewer, 15 thousand examples in place of
    # MetaMathQA's 395 thousand; batch, learning rate and epochs stay. Sets of the other tasks are small as they are.
    "quick": Recipe(
        "the paper's settings on a smaller training set: an evening on one GPU",
        _PAPER,
        _PAPER.model_copy(update={"epochs": 6.0}),
        "bfloat16",
        method_options=_AUTHORS_CODE,
        train_sets={"math": "gsm8k+math"},
    ),
    "small": Recipe(
        "models below 50 M parameters on a CPU",
        _SMALL,
        _SMALL,
        "float32",
        save_dtype="float32",  # small models lose more by rounding than they save in bytes
        method_options={"bs": _SMALL_BASES, "bsi": _SMALL_BASES},
        # A language example fills the context where an instruction takes a fifth of it: about equal tokens per step.
        # Models this small have mostly been pretrained on the very corpus: a high rate would only undo that.
        by_kind={"language": (_FOUR_EXAMPLES | {"learning_rate": 1e-4}, _FOUR_EXAMPLES)},
    ),
}
