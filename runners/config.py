"""What a user asks for: the frozen, validated configuration of a sweep."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..foundation.errors import UserError, did_you_mean
from ..foundation.plain import parse_yaml, read_input
from ..records.schema import recordable
from .store.storage import check_url

MAX_COUNT = 2**31 - 1
"""Largest number of steps, examples or tokens; counts beyond it overflow in the libraries that take them."""
MAX_WORKERS = 1024
MAX_SEED = 2**32 - 1
"""Largest seed that NumPy and transformers take."""
_OTHER_SEPARATOR = re.compile(r"(?P<value>[^()]*?)\s*[:;|&\s]\s*(?P<key>\w+)\s*=")

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


class MethodSpec(BaseModel):
    """One method of a sweep: its name, its options, and the label that tables show.

    The short form ``bs:prunings=2,new_vectors=top`` names options after a colon; its label is the text itself.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str = ""
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return parse_method(value).model_dump() if isinstance(value, str) else value

    @field_validator("name", "label")
    @classmethod
    def _recordable(cls, value: str, info: ValidationInfo) -> str:
        return recordable({"name": "method", "label": "label"}[info.field_name or "name"], value) if value else value

    @property
    def shown(self) -> str:
        """The label, or the name where there is none."""
        return self.label or self.name


def parse_method(text: str) -> MethodSpec:
    """Read ``name`` or ``name:option=value,option=value``; values are YAML scalars.

    Raises:
        UserError: the text has another form, or its label could not stand in a record.
    """
    name, colon, rest = text.strip().partition(":")
    if "=" in name and not colon:
        raise UserError(
            f"'{text}' is no method; options follow a colon and are separated by commas: name:option=value,option=value"
        )
    options = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{text}' is no method; write name:option=value,option=value, such as bs:prunings=10")
        if other := _OTHER_SEPARATOR.match(value):
            first = f"{name}:{key.strip()}={other['value']}"
            raise UserError(
                f"the options of '{text}' are not separated by commas; write {first},{other['key']}=…, or with several "
                "methods name:option=value,option=value,name:option=value"
            )
        options[key.strip()] = parse_yaml(value, f"the value of {key.strip()} in '{text}'")
    try:
        return MethodSpec(name=name, label=text.strip() if colon else "", options=options)
    except ValidationError as error:
        raise UserError(_sentence(error)) from None


def split_methods(text: str) -> list[str]:
    """Split ``svd,bs:prunings=2,seed=1,fwsvd`` at the commas that begin a new method."""
    parts: list[str] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        if "=" in part and ":" not in part and parts:
            parts[-1] += f",{part}"
        else:
            parts.append(part)
    return parts


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


class SweepConfig(BaseModel):
    """A sweep: every method at every ratio and seed, on one model and one task.

    Attributes:
        model: preset, folder or hub id.
        revision: commit of a hub model.
        task: target application.
        train_set: training set of the task; None takes the recipe's, else the task's default for hub or local data.
        methods: at least one, without repeats.
        ratios: original / compressed parameters of the whole model, each above 1, without repeats.
        rank_multiple: ranks are multiples of this number; part of a compression's key only where it is not 1. The same
            on every device, so that a sweep does not depend on where it runs.
        seeds: of training order, new vectors and sampling.
        data: folder with local datasets; None uses the hub.
        recipe: defaults of training; ``auto`` takes the preset's, else by model size.
        finetune, recover: changes to the recipe.
        extra_pruning_steps: optimizer steps that training methods get on top of the common budget.
        training_free: compress the model as it is, without any training; it is evaluated as a pretrained one.
        benchmarks: instead of the task's own; a task's name stands for its benchmarks.
        context: windows of perplexities in tokens; None takes each benchmark's own.
        bos: whether windows of WikiText-2 and C4 begin with a BOS: ``never`` (the GPTQ recipe), ``always``, or ``auto``
            for what the model's tokenizer does.
        limit: only the first problems of each benchmark.
        pretrained: also evaluate the model before finetuning; None leaves it to the task.
        before_recovery: also evaluate each compressed model before its recovery.
        engine: what generates and scores; ``auto`` is vLLM where it is installed, can run the model and pays off.
        dtype: of the evaluation's arithmetic; None takes the recipe's.
        save_dtype: of saved weights; ``own`` is each tensor's in the model that a stage read; None is ``own``, but for
            trained weights the recipe's.
        device: torch device; ``auto`` takes a GPU where there is one.
        eval_batch_size, max_new_tokens: of evaluation.
        samples, temperature, top_p: completions per problem and how they are drawn; several need a temperature.
        allow_weak_isolation: run generated code under resource limits alone.
        workers: processes that run stages side by side on a machine; None decides by cores and device.
        memory: ``walk`` reads the model from disk layer by layer while fitting and compressing, ``whole`` loads it,
            ``auto`` walks large models where that is possible (docs/memory.md). Results are the same.
        executor: ``local`` runs stages on this machine, ``ray`` on the nodes of a Ray cluster. Neither this nor the
            address is part of a stage's key or of ``sweep.yaml``: results are the same.
        address: of a running Ray cluster, HOST:PORT or ``auto``; None starts Ray on this machine.
        accelerate: accelerate's configuration file; trainings then run in several processes, with the same results but
            for rounding. Like the executor no part of a stage's key or of ``sweep.yaml``.
        placement: where trainings keep weights, gradients and moments (docs/memory.md); ``auto`` takes the first that
            fits: one GPU, FSDP2 over all, AdamW's moments in host memory, moments in 8 bits, which alone changes
            numbers.
        checkpoint_minutes: trainings keep a checkpoint as often as this, to go on from when they are cut off; infinite
            keeps none.
        keep: ``all`` weights and factors, or only the ``needed`` ones: what other stages were made from is removed when
            all of the plan that read it are done; records and the last checkpoints stay (`removal`). ``auto`` is
            ``needed`` for models from 1 B parameters on without a storage. No part of a stage's key or of
            ``sweep.yaml``.
        storage: URL of a folder that several machines reach, in which finished stages and results stand too; neither
            part of a stage's key nor of ``sweep.yaml``.
        out: folder for stages and results.
        name: of the sweep's folder; None makes one of model and task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    task: str
    methods: tuple[MethodSpec, ...] = Field(min_length=1)
    ratios: tuple[float, ...] = Field(default=(2.0, 4.0), min_length=1)
    rank_multiple: int = Field(default=1, ge=1, le=4096)
    revision: str | None = None
    train_set: str | None = None
    seeds: tuple[int, ...] = Field(default=(42,), min_length=1)
    data: Path | None = None
    recipe: str = "auto"
    finetune: TrainOverrides = TrainOverrides()
    recover: TrainOverrides = TrainOverrides()
    extra_pruning_steps: Count = 0
    training_free: bool = False
    benchmarks: tuple[str, ...] | None = None
    context: tuple[int, ...] | None = Field(default=None, min_length=1)
    bos: Literal["auto", "always", "never"] = "never"
    limit: Positive | None = None
    pretrained: bool | None = None
    before_recovery: bool = False
    engine: str = "auto"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    save_dtype: Literal["own", "float32", "bfloat16", "float16"] | None = None
    device: str = "auto"
    eval_batch_size: Positive = 64
    max_new_tokens: Positive | None = None
    samples: Positive = 1
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    allow_weak_isolation: bool = False
    workers: int | None = Field(default=None, ge=1, le=MAX_WORKERS)
    memory: Literal["auto", "walk", "whole"] = "auto"
    executor: Literal["local", "ray"] = "local"
    address: str | None = None
    accelerate: Path | None = None
    placement: Literal["auto", "device", "fsdp2", "host-moments", "8-bit"] = "auto"
    checkpoint_minutes: float = Field(default=30.0, ge=0)
    keep: Literal["auto", "all", "needed"] = "auto"
    storage: str | None = None
    out: Path = Path("runs")
    name: str | None = None

    @field_validator("model", "task", "device")
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

    @model_validator(mode="after")
    def _no_training(self) -> SweepConfig:
        asked = self.finetune.steps or self.finetune.epochs or self.recover.steps or self.recover.epochs
        if self.training_free and (asked or self.extra_pruning_steps or self.before_recovery):
            raise ValueError(
                "--training-free leaves out both finetunings, so it does not go with steps, epochs or "
                "--before-recovery; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _address_of_ray(self) -> SweepConfig:
        if self.address is not None and self.executor != "ray":
            raise ValueError(f"--address {self.address} names a Ray cluster; add --executor ray, or leave it out")
        return self

    @model_validator(mode="after")
    def _here(self) -> SweepConfig:
        if self.accelerate is not None and self.executor != "local":
            raise ValueError("--accelerate starts its processes on this machine; leave it out, or --executor ray")
        return self

    @model_validator(mode="after")
    def _kept_in_storage(self) -> SweepConfig:
        if self.keep == "needed" and self.storage is not None:
            raise ValueError(
                f"--keep needed removes weights that --storage {self.storage} would keep for other machines; leave one "
                "of them out"
            )
        return self

    @field_validator("storage")
    @classmethod
    def _storage_url(cls, value: str | None) -> str | None:
        if value is not None:
            check_url(value)
        return value

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


def make_config(values: Mapping[str, Any], kind: type[SweepConfig] = SweepConfig) -> SweepConfig:
    """Validate plain data, from the command line or YAML.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        raise UserError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        key = str(problem["loc"][-1])
        allowed = _allowed_keys([str(part) for part in problem["loc"][:-1]])
        return f"unknown key '{where}'{did_you_mean(key, allowed) or ';'} allowed: {', '.join(sorted(allowed))}"
    if problem["type"] == "missing":
        return f"'{where}' is missing; say it on the command line (--{where}) or in the YAML file ({where}: …)"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return f"{where} cannot be {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _allowed_keys(path: list[str]) -> list[str]:
    if path[:1] in (["finetune"], ["recover"]):
        return list(TrainOverrides.model_fields)
    if path[:1] == ["methods"]:
        return list(MethodSpec.model_fields)
    return list(SweepConfig.model_fields)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys of a sweep from a YAML file.

    Raises:
        UserError: no such file, no YAML, or not a mapping.
    """
    values = parse_yaml(read_input(path, "config file"), f"the config file {path}")
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} must hold 'key: value' lines; see docs/cli.md for an example")
    if odd := next((key for key in values if not isinstance(key, str)), None):
        raise UserError(f"the config file {path} has the key {odd!r}, which is no name; see docs/cli.md for an example")
    if isinstance(values.get("methods"), str):
        values["methods"] = split_methods(values["methods"])
    return values
