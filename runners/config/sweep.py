"""The configuration of a sweep, nested by what a value is for; what is hashed follows from the nesting."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ...foundation.errors import UserError
from ...foundation.files import canonical_json
from ...foundation.strict_numbers import StrictNumbers
from .checks import check_repeats, check_seed
from .evaluation import Evaluation
from .execution import Execution
from .methods import MethodSpec, check_recordable, split_methods
from .options import NONE, Option
from .sentences import sentence
from .training import NO_TRAINING, Training


class SweepConfig(StrictNumbers):
    """A sweep: every method at every ratio and seed, on one model and one task.

    Raises:
        UserError: one sentence about the first value that is wrong.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    needs_task: ClassVar[bool] = True
    """Whether the task must have a name; a subclass may allow an empty one."""

    model: str = Field(description="Preset, folder or hub id (see bench models).")
    revision: str | None = Field(default=None, description="40-digit commit of a hub model.")
    task: str = Field(description="Target application (see bench tasks).")
    methods: Annotated[tuple[MethodSpec, ...], Option(parse=split_methods)] = Field(
        min_length=1,
        description="Methods with commas; options after a colon, a label of your own before an equals sign: "
        "svd,bs:prunings=10,new_vectors=top or quick=bs:prunings=2.",
    )
    ratios: Annotated[tuple[float, ...], Option(example="2,4,7")] = Field(
        default=(2.0, 4.0), min_length=1, description="Original / compressed parameters of the whole model: 2,4,7."
    )
    bytes: Annotated[tuple[float, ...] | None, Option(default=NONE, example="0.5,0.35,0.25")] = Field(
        default=None,
        description="Instead of --ratios: shares of the bfloat16 model's bytes; each method's ratio is solved.",
    )
    bits: Annotated[tuple[int, ...], Option(example="16,8")] = Field(
        default=(16,), min_length=1, description="Bits of the factors: 16 as they are saved, 8 rounded after training."
    )
    controls: Annotated[tuple[MethodSpec, ...], Option(parse=split_methods, default=NONE)] = Field(
        default=(),
        description="Quantisation beside the methods: rtn-int8, rtn-int4, rtn4+r (corrected by low rank), with options "
        "after a colon.",
    )
    # The same on every device, so that a sweep does not depend on where it runs; in a key only where it is not 1.
    rank_multiple: int = Field(
        default=1, ge=1, le=4096, description="Ranks are multiples of this; 16 aligns bfloat16 rows on GPUs."
    )
    # By name in the keys of fits that gather statistics, where it is not float32.
    calibration_dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Of the passes that methods gather statistics from: float32, bfloat16, or auto: bfloat16 on a GPU "
        "for weights stored in 16 bits.",
    )
    seeds: Annotated[tuple[int, ...], Option(example="1,2,3")] = Field(
        default=(42,), min_length=1, description="Seeds with commas: of training order, new vectors and sampling."
    )
    benchmarks: Annotated[tuple[str, ...] | None, Option(default="the task's")] = Field(
        default=None,
        description="See bench benchmarks; the name of a task means its benchmarks, lm_eval:TASK "
        "for any task of lm-evaluation-harness.",
    )
    name: Annotated[str | None, Option(default="MODEL-TASK")] = Field(
        default=None, description="Of this sweep: its folder of results, and the sweep in their rows."
    )
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    execution: Execution = Execution()

    @field_validator("model", "task")
    @classmethod
    def _recordable(cls, value: str, info: ValidationInfo) -> str:
        if info.field_name == "task" and not value and not cls.needs_task:
            return value
        return check_recordable(str(info.field_name), value)

    @field_validator("ratios")
    @classmethod
    def _usable_ratios(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        for value in values:
            if not (math.isfinite(value) and value > 1):
                raise ValueError(
                    f"the ratio {value:g} is not usable; a ratio is original / compressed parameters and must be above "
                    "1, such as 2 for half the size"
                )
        check_repeats("ratio", [f"{value:g}" for value in values])
        return values

    @field_validator("bytes")
    @classmethod
    def _usable_shares(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for value in values or ():
            if not 0 < value < 1:
                raise ValueError(
                    f"{value:g} is no share of the bfloat16 model's bytes; use a number between 0 and 1, such as 0.5"
                )
        check_repeats("share of bytes", [f"{value:g}" for value in values or ()])
        return values or None

    @field_validator("bits")
    @classmethod
    def _distinct_bits(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for value in values:
            if value not in (8, 16):
                raise ValueError(
                    f"factors cannot be stored in {value} bits; use 16 (as they are saved), 8, or 16,8 for both"
                )
        check_repeats("number of bits", [str(value) for value in values])
        return values

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, values: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        from ...models.quantised.scheme import parse_control

        for spec in values:
            parse_control(spec.name, spec.options)
        check_repeats("control", [spec.shown for spec in values])
        return values

    @field_validator("methods")
    @classmethod
    def _distinct_methods(cls, values: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        from ...models.quantised.scheme import CONTROLS

        for spec in values:
            if spec.name in CONTROLS:
                raise ValueError(f"{spec.name} is no low-rank method but a control; write --controls {spec.shown}")
            if "bits" in spec.options:
                raise ValueError(
                    f"bits is no option of {spec.name}: all methods of a sweep are measured in the same bits; write "
                    f"--bits {spec.options['bits']}, or --bits 16,8 for both"
                )
            same = [other for other in values if other.shown == spec.shown]
            if len({(other.name, canonical_json(other.options)) for other in same}) > 1:
                raise ValueError(f"the label '{spec.shown}' is given to two methods; give each a label of its own")
        check_repeats("method", [spec.shown for spec in values])
        return values

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for value in values:
            check_seed(value)
        check_repeats("seed", [str(value) for value in values])
        return values

    @model_validator(mode="after")
    def _bytes_or_ratios(self) -> SweepConfig:
        if self.bytes is not None and "ratios" in self.model_fields_set:  # typed, be they the defaults
            raise ValueError("--bytes solves the ratio of each method; leave --ratios out, or --bytes")
        return self

    @model_validator(mode="after")
    def _distinct_labels(self) -> SweepConfig:
        methods = {spec.shown for spec in self.methods}
        for spec in self.controls:
            if spec.shown in methods:
                raise ValueError(
                    f"the label '{spec.shown}' is given to a method and to a control; choose another for one"
                )
        return self

    @model_validator(mode="after")
    def _no_recovery(self) -> SweepConfig:
        if self.training.training_free and self.evaluation.before_recovery:
            raise ValueError(NO_TRAINING)
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith(".") or any(c in value for c in "/\\\0")):
            raise ValueError(f"the name '{value}' is not usable as a folder; use letters, digits, '-' and '_'")
        if value is not None and len(value.encode(errors="replace")) > 200:
            raise ValueError(f"the name '{value}' is too long for a folder; use at most 200 bytes")
        return value if value is None else check_recordable("name", value)

    @model_validator(mode="wrap")  # the last one: it is around all others
    @classmethod
    def _in_a_sentence(cls, values: Any, validate: ModelWrapValidatorHandler[SweepConfig]) -> SweepConfig:
        try:
            return validate(values)
        except ValidationError as error:
            raise UserError(sentence(error, SweepConfig)) from error
