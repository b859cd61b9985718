"""The models of a configuration, nested by what a value is for; what is hashed follows from the nesting."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)

from ...foundation.errors import unknown
from ...foundation.files import canonical_json
from ..tracking.names import TRACKERS
from .methods import MethodSpec, check_recordable, split_methods
from .options import Option
from .recoveries import FULL, RecoverySpec

MAX_COUNT = 2**31 - 1
"""Largest number of steps, examples or tokens; counts beyond it overflow in the libraries that take them."""
MAX_WORKERS = 1024
BosRule = Literal["auto", "always", "never"]
BOS_CHOICES = get_args(BosRule)
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy and transformers take."""

_NO_TRAINING = (
    "--training-free leaves out both finetunings, so it does not go with steps, epochs or --before-recovery; leave one "
    "of them out"
)

_FILES = "Files"

Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Positive = Annotated[int, Field(ge=1, le=MAX_COUNT)]


def check_seed(seed: int) -> int:
    """Return a usable seed.

    Raises:
        ValueError: it is negative or beyond 32 bits.
    """
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"the seed {seed} is not usable; a seed is a whole number from 0 to {MAX_SEED:,}, such as 42")
    return seed


class TrainOverrides(BaseModel):
    """Changes to a recipe's training run; a field left out keeps the recipe's value (see ``recipes.TrainSettings``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    steps: Annotated[Count | None, Option(name="{parent}_steps", default="the recipe's")] = Field(
        default=None, description="Optimizer steps {description}"
    )
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    learning_rate: Annotated[float | None, Option(name="lr", default="the recipe's")] = Field(
        default=None, gt=0, allow_inf_nan=False, description="Learning rate of both finetunings."
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
        _no_repeats("number of recover steps", [str(value) for value in values or ()])
        return values

    @field_serializer("steps")
    def _plain_steps(self, values: tuple[int, ...] | None) -> int | list[int] | None:
        return values[0] if values and len(values) == 1 else None if values is None else list(values)


class Training(BaseModel):
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

    @model_validator(mode="after")
    def _no_training(self) -> Training:
        asked = self.finetune.steps or self.finetune.epochs or any(self.recover.steps or ()) or self.recover.epochs
        if self.training_free and (asked or self.extra_pruning_steps):
            raise ValueError(_NO_TRAINING)
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


class Evaluation(BaseModel):
    """How models are measured, and in which states."""

    panel: ClassVar[str] = "Evaluation"
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    limit: Annotated[Positive | None, Option(default="all")] = Field(
        default=None, description="Only so many problems of each benchmark, the first."
    )
    pretrained: Annotated[bool | None, Option(default="as the task says")] = Field(
        default=None, description="Also evaluate before the first finetuning."
    )
    before_recovery: bool = Field(default=False, description="Also evaluate before the second finetuning.")
    context: Annotated[tuple[int, ...] | None, Option(default="the benchmark's", example="128,2048")] = Field(
        default=None, min_length=1, description="Windows of perplexities in tokens: 128,2048."
    )
    bos: Annotated[tuple[BosRule, ...], Option(example="never,always")] = Field(
        default=("auto",),
        min_length=1,
        description="BOS at the start of each window of wikitext2 and c4: auto (where the model's tokenizer adds one; "
        "uncompressed models are measured without it too), always, never (GPTQ's recipe), or never,always.",
    )
    max_new_tokens: Annotated[Positive | None, Option(default="the benchmark's")] = Field(
        default=None, description="Longest completion in tokens."
    )
    samples: Positive = Field(default=1, description="Completions per problem, for pass@k; several need a temperature.")
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Of sampling; 0 is greedy.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of the probability that is sampled from, the likeliest tokens; 1 is all.",
    )
    problem_seed: Annotated[int | None, Option(default="42")] = Field(
        default=None,
        ge=0,
        le=MAX_SEED,
        description="Of generated test problems and of sampling; another one gives other problems.",
    )
    engine: str = Field(default="auto", description="What generates and scores: vllm, transformers or auto.")
    dtype: Annotated[Literal["float32", "bfloat16", "float16"] | None, Option(default="the recipe's")] = Field(
        default=None, description="Of the evaluation's arithmetic: float32, bfloat16, float16."
    )

    @field_validator("context")
    @classmethod
    def _distinct_contexts(cls, values: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for value in values or ():
            if value < 2:
                raise ValueError(f"the context {value} predicts nothing; use 2 tokens or more, such as 2048")
            if value > MAX_COUNT:
                raise ValueError(f"the context {value} is longer than any model's; use at most {MAX_COUNT:,} tokens")
        _no_repeats("context", [str(value) for value in values or ()])
        return values

    @field_validator("bos", mode="before")
    @classmethod
    def _known_bos(cls, values: object) -> object:
        if isinstance(values, str):
            values = tuple(filter(None, (part.strip() for part in values.split(","))))
        for value in values if isinstance(values, list | tuple) else ():
            if value not in BOS_CHOICES:
                raise ValueError(str(unknown("BOS rule", str(value), BOS_CHOICES)))
        return values

    @field_validator("bos")
    @classmethod
    def _distinct_bos(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        _no_repeats("BOS rule", list(values))
        return values


class Execution(BaseModel):
    """Where and how fast a sweep runs: none of it is part of a stage's key or of ``sweep.yaml``.

    What the machine decides for a setting that is ``auto`` (engine, optimizer's kernel, placement) is part of a key by
    its own name, and so is the content of the data that are read.
    """

    panel: ClassVar[str] = "Execution: where and how fast, with the same results"
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one.")
    workers: Annotated[int | None, Option(default="by cores and device")] = Field(
        default=None, ge=1, le=MAX_WORKERS, description="Stages side by side."
    )
    memory: Literal["auto", "walk", "whole"] = Field(
        default="auto", description="Fit and compress layer by layer (walk), whole, or by size."
    )
    eval_batch_size: Positive = Field(default=64, description="Prompts per batch.")
    accelerate: Path | None = Field(
        default=None, description="accelerate's config file: train in several processes, such as one per GPU."
    )
    executor: Literal["local", "ray"] = Field(
        default="local", description="local, or ray: stages as tasks of a Ray cluster."
    )
    address: Annotated[str | None, Option(default="Ray is started on this machine")] = Field(
        default=None, description="Running Ray cluster: HOST:PORT or auto."
    )
    allow_weak_isolation: bool = Field(
        default=False, description="Run generated code even where only resource limits hold it."
    )
    data: Annotated[Path | None, Option(environment="LOWRANK_BENCH_DATA", panel=_FILES)] = Field(
        default=None, description="Folder with local datasets; without it the hub is used."
    )
    include_path: Annotated[Path | None, Option(panel=_FILES)] = Field(
        default=None, description="Folder with YAML files of your own lm_eval: tasks."
    )
    out: Annotated[Path, Option(panel=_FILES)] = Field(
        default=Path("runs"), description="Folder for stages and results."
    )
    storage: Annotated[str | None, Option(panel=_FILES)] = Field(
        default=None, description="URL of shared or object storage for stages and results: s3://BUCKET/FOLDER."
    )
    keep: Annotated[Literal["auto", "all", "needed"], Option(default="needed from 1 B parameters on", panel=_FILES)] = (
        Field(default="auto", description="all weights, or needed: remove what no later stage reads.")
    )
    checkpoint_minutes: Annotated[float, Option(panel=_FILES)] = Field(
        default=30.0,
        ge=0,
        description="Minutes between two states of a training that it can be resumed from; inf: none.",
    )

    report_to: Annotated[tuple[str, ...], Option(default="none", example="tensorboard,wandb")] = Field(
        default=(),
        description="Trackers of training curves and results: tensorboard, mlflow, wandb, trackio.",
    )

    @property
    def folder(self) -> Path:
        """The absolute path of ``out``."""
        return self.out.expanduser().resolve()

    @field_validator("device")
    @classmethod
    def _recordable(cls, value: str) -> str:
        return check_recordable("device", value)

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in TRACKERS:
                raise ValueError(str(unknown("tracker", value, TRACKERS)))
        _no_repeats("tracker", list(values))
        return values

    @field_validator("storage")
    @classmethod
    def _storage_url(cls, value: str | None) -> str | None:
        if value is not None:
            from ..store.storage import check_url

            check_url(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Execution:
        if self.address is not None and self.executor != "ray":
            raise ValueError(f"--address {self.address} names a Ray cluster; add --executor ray, or leave it out")
        if self.accelerate is not None and self.executor != "local":
            raise ValueError("--accelerate starts its processes on this machine; leave it out, or --executor ray")
        if self.keep == "needed" and self.storage is not None:
            raise ValueError(
                f"--keep needed removes weights that --storage {self.storage} would keep for other machines; leave one "
                "of them out"
            )
        return self


class SweepConfig(BaseModel):
    """A sweep: every method at every ratio and seed, on one model and one task."""

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
    bytes: Annotated[tuple[float, ...] | None, Option(example="0.5,0.35,0.25")] = Field(
        default=None,
        min_length=1,
        description="Instead of --ratios: shares of the bfloat16 model's bytes; each method's ratio is solved.",
    )
    bits: Annotated[tuple[int, ...], Option(example="16,8")] = Field(
        default=(16,), min_length=1, description="Bits of the factors: 16 as they are saved, 8 rounded after training."
    )
    controls: Annotated[tuple[MethodSpec, ...], Option(parse=split_methods, default="none")] = Field(
        default=(),
        description="Rows of plain quantisation beside the methods: rtn-int8, rtn-int4, with options after a colon.",
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
        _no_repeats("ratio", [f"{value:g}" for value in values])
        return values

    @field_validator("bytes")
    @classmethod
    def _usable_shares(cls, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for value in values or ():
            if not 0 < value < 1:
                raise ValueError(
                    f"{value:g} is no share of the bfloat16 model's bytes; use a number between 0 and 1, such as 0.5"
                )
        _no_repeats("share of bytes", [f"{value:g}" for value in values or ()])
        return values

    @field_validator("bits")
    @classmethod
    def _distinct_bits(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for value in values:
            if value not in (8, 16):
                raise ValueError(
                    f"factors cannot be stored in {value} bits; use 16 (as they are saved), 8, or 16,8 for both"
                )
        _no_repeats("number of bits", [str(value) for value in values])
        return values

    @field_validator("controls")
    @classmethod
    def _known_controls(cls, values: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
        from ...models.quantised.scheme import control_scheme

        for spec in values:
            control_scheme(spec.name, spec.options)
        _no_repeats("control", [spec.shown for spec in values])
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
        _no_repeats("method", [spec.shown for spec in values])
        return values

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        for value in values:
            check_seed(value)
        _no_repeats("seed", [str(value) for value in values])
        return values

    @model_validator(mode="after")
    def _bytes_or_ratios(self) -> SweepConfig:
        if self.bytes is not None and self.ratios != type(self).model_fields["ratios"].default:
            raise ValueError("--bytes solves the ratio of each method; leave --ratios out, or --bytes")
        return self

    @model_validator(mode="after")
    def _no_recovery(self) -> SweepConfig:
        if self.training.training_free and self.evaluation.before_recovery:
            raise ValueError(_NO_TRAINING)
        return self

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and (not value or value.startswith(".") or any(c in value for c in "/\\\0")):
            raise ValueError(f"the name '{value}' is not usable as a folder; use letters, digits, '-' and '_'")
        if value is not None and len(value.encode(errors="replace")) > 200:
            raise ValueError(f"the name '{value}' is too long for a folder; use at most 200 bytes")
        return value if value is None else check_recordable("name", value)


def _no_repeats(kind: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"the {kind} {repeated[0]} is given twice; name each {kind} once")
