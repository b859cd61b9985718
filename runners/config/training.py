"""What is trained, for how long and how: the part of a configuration that changes weights."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from ...foundation.errors import unknown
from ...foundation.limits import MAX_COUNT, MAX_LEARNING_RATE
from ...foundation.strict_numbers import StrictNumbers
from .checks import Count, Positive, check_repeats
from .methods import split_methods
from .options import NONE, Option
from .recoveries import FULL, RecoverySpec
from .tuning import check_grid, split_grid

NO_TRAINING = (
    "--training-free leaves out both finetunings, so it does not go with steps, epochs or --before-recovery; leave one "
    "of them out"
)


class TrainOverrides(StrictNumbers):
    """Changes to a recipe's training run; a field left out keeps the recipe's value (see ``recipes.TrainSettings``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    steps: Annotated[Count | None, Option(name="{parent}_steps", default="the recipe's")] = Field(
        default=None, description="Optimizer steps {description}"
    )
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    learning_rate: Annotated[float | None, Option(name="lr", default="the recipe's")] = Field(
        default=None,
        gt=0,
        le=MAX_LEARNING_RATE,
        allow_inf_nan=False,
        description="Learning rate of both finetunings.",
    )
    batch_size: Annotated[Positive | None, Option(default="the recipe's")] = Field(
        default=None, description="Examples per optimizer step."
    )
    micro_batch_size: Positive | None = None
    schedule: str | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    optimizer: str | None = None
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_length: Annotated[int | None, Option(default="the recipe's")] = Field(
        default=None, ge=8, le=MAX_COUNT, description="Longest training example in tokens."
    )
    gradient_checkpointing: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None

    @field_validator("schedule", "optimizer")
    @classmethod
    def _known_name(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse a name that transformers does not know; it would say so only when the training begins."""
        if value is None:
            return None
        from transformers.trainer_utils import SchedulerType  # imported where one is named
        from transformers.training_args import OptimizerNames

        kind = str(info.field_name)
        known = [str(entry.value) for entry in (SchedulerType if kind == "schedule" else OptimizerNames)]
        if value not in known:
            raise unknown(kind, value, known)
        return value


class RecoverOverrides(TrainOverrides):
    """Changes to a recipe's training after compression; several numbers of steps are an axis of the sweep."""

    steps: Annotated[
        tuple[int, ...] | None, Option(name="{parent}_steps", default="the recipe's", example="100,200,400")
    ] = Field(  # type: ignore[assignment]
        default=None, min_length=1, description="Optimizer steps {description}"
    )

    @field_validator("steps", mode="before")
    @classmethod
    def _listed(cls, values: object) -> object:
        if isinstance(values, str):
            return tuple(filter(None, (part.strip() for part in values.split(","))))
        return (values,) if isinstance(values, int) else values

    @field_validator("steps")
    @classmethod
    def _usable_steps(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for value in values or ():
            if not 0 <= value <= MAX_COUNT:
                raise ValueError(
                    f"{value} recover steps are not possible; write a whole number from 0 to {MAX_COUNT:,}, or several "
                    "with commas, such as 100,200,400"
                )
        if values and len(values) > 1 and 0 in values:
            others = ",".join(str(value) for value in values if value)
            raise ValueError(
                f"0 recover steps leave the second finetuning out, so they are no budget beside others; write "
                f"--recover-steps {others} --before-recovery to measure models before it too"
            )
        check_repeats("number of recover steps", [str(value) for value in values or ()])
        return values

    @field_serializer("steps")
    def _plain_steps(self, values: tuple[int, ...] | None) -> int | list[int] | None:
        return values[0] if values and len(values) == 1 else None if values is None else list(values)


class Training(StrictNumbers):
    """How models are finetuned, before compression and after it."""

    panel: ClassVar[str] = "Training"
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    recipe: str = Field(
        default="auto", description="Training defaults: paper, quick, small or auto (the preset's, else by size)."
    )
    train_set: Annotated[str | None, Option(default="the recipe's, else the task's")] = Field(
        default=None, description="Training set of the task (see bench tasks)."
    )
    finetune: TrainOverrides = Field(default=TrainOverrides(), description="of the first finetuning.")
    recover: RecoverOverrides = Field(
        default=RecoverOverrides(),
        description="after it, pruning included; the same for every method. Several, 100,200,400: each of them.",
    )
    recovery: Annotated[tuple[RecoverySpec, ...], Option(parse=split_methods, default="full", example="full,lora")] = (
        Field(
            default=(FULL,),
            min_length=1,
            description="What is trained after compression: full, lora, none (bench methods --recoveries); several are "
            "compared: full,lora:r=16.",
        )
    )
    tune: Annotated[tuple[float, ...] | None, Option(parse=split_grid, default=NONE)] = Field(
        default=None,
        description="Learning rates after compression, lr=1e-4,3e-4,1e-3: held-out training examples choose per method "
        "and ratio; --lr is of the first finetuning then.",
    )
    chat_template: Literal["auto", "never"] = Field(
        default="auto",
        description="Instructions as conversations: auto (where the model's tokenizer has a chat template), never.",
    )
    extra_pruning_steps: Count = Field(default=0, description="Pruning steps on top of the common budget.")
    training_free: bool = Field(
        default=False,
        description="Compress the model as it is; no finetuning before or after. It is prompted as a pretrained one.",
    )
    save_dtype: Annotated[
        Literal["own", "float32", "bfloat16", "float16"] | None, Option(default="own; of trained, the recipe's")
    ] = Field(default=None, description="Of saved weights: own (the model's), float32, bfloat16, float16.")
    # Its last choice, moments in 8 bits, changes numbers and so the keys of trainings: it is not part of `Execution`.
    placement: Annotated[
        Literal["auto", "device", "fsdp2", "host-moments", "8-bit"], Option(default="auto, what fits")
    ] = Field(default="auto", description="Of trained weights and moments: device, fsdp2, host-moments, 8-bit.")

    @field_validator("recovery", mode="before")
    @classmethod
    def _listed(cls, values: object) -> object:
        if isinstance(values, str):
            return split_methods(values)
        return [values] if isinstance(values, dict | RecoverySpec) else values

    @field_validator("recovery")
    @classmethod
    def _known_recoveries(cls, values: tuple[RecoverySpec, ...]) -> tuple[RecoverySpec, ...]:
        from ...methods.recoveries.base import create_recovery

        recoveries: dict[str, str] = {}
        for spec in values:
            recovery = create_recovery(spec.name, spec.options)
            key = f"{recovery.name} {recovery.model_dump_json()}"
            if key in recoveries:
                raise ValueError(
                    f"the recovery {recoveries[key]} is given twice, the second time as {spec.shown}; name each once"
                )
            recoveries[key] = spec.shown
        return values

    @field_validator("tune", mode="before")
    @classmethod
    def _grid_of_text(cls, values: object) -> object:
        return values if values is None or isinstance(values, list | tuple) else split_grid(str(values))

    @field_validator("tune")
    @classmethod
    def _usable_grid(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return check_grid(values) if values else None

    @field_serializer("tune")
    def _plain_grid(self, values: tuple[float, ...] | None) -> str | None:
        return None if values is None else f"lr={','.join(map(repr, values))}"  # exactly; people read `grid_text`

    @model_validator(mode="after")
    def _something_to_tune(self) -> Training:
        if self.tune is None:
            return self
        if self.training_free or self.recover.steps == (0,) or all(spec.name == "none" for spec in self.recovery):
            raise ValueError(
                "--tune chooses the learning rate of the training after compression, and there is none; leave --tune "
                "out, or --training-free, --recover-steps 0 and --recovery none"
            )
        if self.finetune.max_length != self.recover.max_length:
            raise ValueError(
                "--tune holds the same examples out of both finetunings, so max_length has to be the same in both"
            )
        return self

    @model_validator(mode="after")
    def _no_training(self) -> Training:
        asked = self.finetune.steps or self.finetune.epochs or any(self.recover.steps or ()) or self.recover.epochs
        if self.training_free and (asked or self.extra_pruning_steps):
            raise ValueError(NO_TRAINING)
        if trained := [spec.shown for spec in self.recovery if spec.name not in ("full", "none")]:
            if self.training_free:
                raise ValueError(
                    f"--training-free leaves out both finetunings, and --recovery {trained[0]} is one; leave one "
                    "of them out"
                )
            if self.recover.steps == (0,):
                raise ValueError(
                    f"0 recover steps leave nothing to --recovery {trained[0]}; give it steps, or leave one of them out"
                )
        return self
