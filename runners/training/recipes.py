"""Training recipes: what is filled in where the user says nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...foundation.errors import UserError
from ...models.dtypes import OWN
from ...models.footprint import SMALL_PARAMETERS

SMALL_MODEL_PARAMETERS = SMALL_PARAMETERS
"""Models below this size get the recipe ``small`` unless another is named."""


Placement = Literal["device", "fsdp2", "host-moments", "8-bit"]
"""Where a training keeps what belongs to its weights.

    device          weights, gradients and moments on the device, in float32
    fsdp2           each of several GPUs holds a share of the three
    host-moments    weights and gradients on the GPU, AdamW's moments in pinned host memory, the same arithmetic
    8-bit           AdamW's moments in 8 bits on the GPU; other arithmetic, so another stage key
"""
HASHED_PLACEMENTS: tuple[Placement, ...] = ("8-bit",)


class TrainSettings(BaseModel):
    """How one training run is done; every field of it is part of the stage's identity.

    Attributes:
        steps: optimizer steps; takes precedence over ``epochs``. 0 leaves the run out.
        epochs: passes over the training set, used where ``steps`` is None.
        learning_rate: peak of the schedule.
        batch_size: examples per optimizer step, over all devices.
        micro_batch_size: examples per forward pass; smaller than ``batch_size`` accumulates gradients.
        schedule: transformers' name of the learning-rate schedule.
        warmup: share of the steps with a rising learning rate.
        optimizer: transformers' name of the optimizer; recipes say ``adamw_torch``, on a GPU ``adamw_torch_fused``.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        max_length: longest example in tokens; longer ones are left out and counted. None takes the task's own.
        gradient_checkpointing: trade time for memory.
        precision: ``float32``, ``bfloat16`` (autocast over float32 weights) or ``auto``: bfloat16 on a GPU.
        placement: where weights, gradients and moments are (`placement`); a plan chooses it by the machine.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int | None = Field(default=None, ge=0)
    epochs: float = Field(default=3.0, gt=0)
    learning_rate: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=128, ge=1)
    micro_batch_size: int = Field(default=8, ge=1)
    schedule: str = "cosine"
    warmup: float = Field(default=0.03, ge=0, lt=1)
    optimizer: str = "adamw_torch"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int | None = Field(default=None, ge=8)
    gradient_checkpointing: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    placement: Placement = "device"

    def hashed(self) -> dict[str, Any]:
        """Return what is part of a stage's key: all but placements that leave the numbers as they are."""
        return self.model_dump(exclude=set() if self.placement in HASHED_PLACEMENTS else {"placement"})

    def total_steps(self, examples: int) -> int:
        """Return the optimizer steps over a training set of that many examples."""
        if self.steps is not None:
            return self.steps
        per_epoch = -(-examples // self.batch_size)
        return max(1, round(per_epoch * self.epochs))

    def split(self, processes: int = 1) -> tuple[int, int]:
        """Return (examples per forward pass of a process, passes before an update) that make up the batch of them all.

        Raises:
            UserError: the batch cannot be divided.
        """
        share, rest = divmod(self.batch_size, processes)
        if rest:
            fitting = ", ".join(str(n) for n in range(2, 17) if self.batch_size % n == 0)
            raise UserError(
                f"the batch size {self.batch_size} cannot be divided among {processes} processes; set num_processes to "
                f"a divisor ({fitting or 'none'}), or --batch-size to a multiple of {processes}"
            )
        micro = min(self.micro_batch_size, share)
        if processes > 1:
            micro = max(size for size in range(1, micro + 1) if share % size == 0)
        if share % micro:
            raise UserError(
                f"the batch size {self.batch_size} is no multiple of the micro batch size {micro}; choose a divisor"
            )
        return micro, share // micro


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
_FOUR_EXAMPLES = {"batch_size": 4, "micro_batch_size": 4}

RECIPES: dict[str, Recipe] = {
    # The Basis Selection authors' run scripts (their repository is named in docs/methods/bs.md): AdamW, 2e-5, batch
    # 128, cosine, warm-up .03, 512 tokens, 3 epochs before and 1 + 2 + 3 after, which is what the other methods get as
    # recovery.
    "paper": Recipe(
        "the Basis Selection authors' settings", _PAPER, _PAPER.model_copy(update={"epochs": 6.0}), "bfloat16"
    ),
    # An evening for 7 B parameters on one H100 (docs/gpu.md). Only the data are fewer, 15 thousand examples in place of
    # MetaMathQA's 395 thousand; batch, learning rate and epochs stay. Sets of the other tasks are small as they are.
    "quick": Recipe(
        "the paper's settings on a smaller training set: an evening on one GPU",
        _PAPER,
        _PAPER.model_copy(update={"epochs": 6.0}),
        "bfloat16",
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
