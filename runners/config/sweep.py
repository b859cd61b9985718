"""The models of a configuration, nested by what a value is for; what is hashed follows from the nesting."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from ...records.schema import recordable
from ..store.storage import check_url
from .methods import MethodSpec

MAX_COUNT = 2**31 - 1
"""Largest number of steps, examples or tokens; counts beyond it overflow in the libraries that take them."""
MAX_WORKERS = 1024
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy and transformers take."""

_NO_TRAINING = (
    "--training-free leaves out both finetunings, so it does not go with steps, epochs or --before-recovery; leave one "
    "of them out"
)

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

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Count | None = None
    epochs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    batch_size: Positive | None = None
    micro_batch_size: Positive | None = None
    schedule: str | None = None
    warmup: float | None = Field(default=None, ge=0, lt=1)
    optimizer: str | None = None
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    max_grad_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_length: int | None = Field(default=None, ge=8, le=MAX_COUNT)
    gradient_checkpointing: bool | None = None
    precision: Literal["auto", "float32", "bfloat16"] | None = None


class Training(BaseModel):
    """How models are finetuned, before compression and after it; what a stage key holds of it is in `plan`.

    Attributes:
        recipe: defaults of training; ``auto`` takes the preset's, else by model size.
        train_set: training set of the task; None takes the recipe's, else the task's default for hub or local data.
        finetune, recover: changes to the recipe.
        extra_pruning_steps: optimizer steps that training methods get on top of the common budget.
        training_free: compress the model as it is, without any training; it is evaluated as a pretrained one.
        save_dtype: of saved weights; ``own`` is each tensor's in the model that a stage read; None is ``own``, but for
            trained weights the recipe's.
        placement: where trainings keep weights, gradients and moments (docs/memory.md); ``auto`` takes the first that
            fits: one GPU, FSDP2 over all, AdamW's moments in host memory, moments in 8 bits. The last one changes
            numbers and is part of the keys of trainings, so this field is not one of `Execution`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str = "auto"
    train_set: str | None = None
    finetune: TrainOverrides = TrainOverrides()
    recover: TrainOverrides = TrainOverrides()
    extra_pruning_steps: Count = 0
    training_free: bool = False
    save_dtype: Literal["own", "float32", "bfloat16", "float16"] | None = None
    placement: Literal["auto", "device", "fsdp2", "host-moments", "8-bit"] = "auto"

    @model_validator(mode="after")
    def _no_training(self) -> Training:
        asked = self.finetune.steps or self.finetune.epochs or self.recover.steps or self.recover.epochs
        if self.training_free and (asked or self.extra_pruning_steps):
            raise ValueError(_NO_TRAINING)
        return self


class Evaluation(BaseModel):
    """How models are measured, and in which states.

    Attributes:
        pretrained: also evaluate the model before finetuning; None leaves it to the task.
        before_recovery: also evaluate each compressed model before its recovery.
        limit: only the first problems of each benchmark.
        context: windows of perplexities in tokens; None takes each benchmark's own.
        bos: whether windows of WikiText-2 and C4 begin with a BOS: ``never`` (the GPTQ recipe), ``always``, or ``auto``
            for what the model's tokenizer does.
        max_new_tokens: longest completion; None takes each benchmark's own.
        samples, temperature, top_p: completions per problem and how they are drawn; several need a temperature.
        engine: what generates and scores; ``auto`` is vLLM where it is installed, can run the model and pays off.
        dtype: of the evaluation's arithmetic; None takes the recipe's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pretrained: bool | None = None
    before_recovery: bool = False
    limit: Positive | None = None
    context: tuple[int, ...] | None = Field(default=None, min_length=1)
    bos: Literal["auto", "always", "never"] = "never"
    max_new_tokens: Positive | None = None
    samples: Positive = 1
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    engine: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None

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


class Execution(BaseModel):
    """Where and how fast a sweep runs: none of it is part of a stage's key or of ``sweep.yaml``.

    What the machine decides for a setting that is ``auto`` (engine, optimizer's kernel, placement) is part of a key by
    its own name.

    Attributes:
        data: folder with local datasets; None uses the hub. Keys hold a hash of what is read, not where it lies.
        out: folder for stages and results.
        storage: URL of a folder that several machines reach, to which finished stages and results are copied too.
        keep: ``all`` weights and factors, or only the ``needed`` ones: what other stages were made from is removed when
            all of the plan that read it are done; records and the last checkpoints stay (`removal`). ``auto`` is
            ``needed`` for models from 1 B parameters on without a storage.
        checkpoint_minutes: trainings keep a checkpoint as often as this, to go on from when they are cut off; infinite
            keeps none.
        device: torch device; ``auto`` takes a GPU where there is one.
        workers: processes that run stages side by side on a machine; None decides by cores and device.
        memory: ``walk`` reads the model from disk layer by layer while fitting and compressing, ``whole`` loads it,
            ``auto`` walks large models where that is possible (docs/memory.md). Results are the same.
        eval_batch_size: prompts that the engine gets at once.
        executor: ``local`` runs stages on this machine, ``ray`` on the nodes of a Ray cluster.
        address: of a running Ray cluster, HOST:PORT or ``auto``; None starts Ray on this machine.
        accelerate: accelerate's configuration file; trainings then run in several processes, with the same results but
            for rounding.
        allow_weak_isolation: run generated code under resource limits alone.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: Path | None = None
    out: Path = Path("runs")
    storage: str | None = None
    keep: Literal["auto", "all", "needed"] = "auto"
    checkpoint_minutes: float = Field(default=30.0, ge=0)
    device: str = "auto"
    workers: int | None = Field(default=None, ge=1, le=MAX_WORKERS)
    memory: Literal["auto", "walk", "whole"] = "auto"
    eval_batch_size: Positive = 64
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    accelerate: Path | None = None
    allow_weak_isolation: bool = False

    @property
    def folder(self) -> Path:
        """The absolute path of ``out``."""
        return self.out.expanduser().resolve()

    @field_validator("device")
    @classmethod
    def _recordable(cls, value: str) -> str:
        return recordable("device", value)

    @field_validator("storage")
    @classmethod
    def _storage_url(cls, value: str | None) -> str | None:
        if value is not None:
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
    """A sweep: every method at every ratio and seed, on one model and one task.

    Attributes:
        model: preset, folder or hub id.
        revision: commit of a hub model.
        task: target application.
        methods: at least one, without repeats.
        ratios: original / compressed parameters of the whole model, each above 1, without repeats.
        rank_multiple: ranks are multiples of this number; part of a compression's key only where it is not 1. The same
            on every device, so that a sweep does not depend on where it runs.
        seeds: of training order, new vectors and sampling.
        benchmarks: instead of the task's own; a task's name stands for its benchmarks.
        name: of the sweep in its records, and of its folder; None makes one of model and task.
        training, evaluation: how models are trained and measured.
        execution: where and how fast; never hashed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    ratios: tuple[float, ...] = Field(default=(2.0, 4.0), min_length=1)
    rank_multiple: int = Field(default=1, ge=1, le=4096)
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    revision: str | None = None
    benchmarks: tuple[str, ...] | None = None
    name: str | None = None
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    execution: Execution = Execution()

    @field_validator("model", "task")
    @classmethod
    def _recordable(cls, value: str, info: ValidationInfo) -> str:
        return recordable(str(info.field_name), value)

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

    @field_validator("methods")
    @classmethod
    def _distinct_methods(cls, values: tuple[MethodSpec, ...]) -> tuple[MethodSpec, ...]:
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
        return value if value is None else recordable("name", value)


def _no_repeats(kind: str, values: list[str]) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"the {kind} {repeated[0]} is given twice; name each {kind} once")
