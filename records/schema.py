"""The schema of a record: one tidy row of results. The field descriptions are the data dictionary."""

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import regex
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..foundation.files import canonical_json
from .metrics import is_fraction

SCHEMA_VERSION = 3
STAGES = ("pretrained", "finetuned", "compressed", "recovered")
BUDGET = "steps_budget"
MAX_TEXT, MAX_JSON = 1000, 20_000
"""Longest text and longest JSON object in characters."""
_MAX_INT = 2**63 - 1
_UNSEEN = {"Cc": "control characters", "Cs": "halves of characters", "Zl": "line breaks", "Zp": "line breaks"} | {
    "Cf": "invisible characters (zero-width, right-to-left marks)"
}
_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")  # fillers and variation selectors, which are letters


@lru_cache(maxsize=4096)  # ten thousand records have few different texts
def _text(value: str) -> str:
    if value[:1] in "=+-@" and value:  # the empty string is in every string
        raise ValueError(
            f"'{value[:30]}' would be a formula in a spreadsheet; begin with a letter, a digit, '.' or '/'"
        )
    for character in value:
        if kind := _UNSEEN.get(unicodedata.category(character)):
            raise ValueError(f"{kind} are not allowed in text, and this has U+{ord(character):04X}; remove it")
    if match := _INVISIBLE.search(value):
        raise ValueError(f"invisible characters are not allowed in text, and this has U+{ord(match[0]):04X}; remove it")
    return value


def recordable(kind: str, value: str) -> str:
    """Return a name that a record accepts, so that nothing is refused when the work is done.

    Raises:
        ValueError: it is empty, too long, would be a formula in a spreadsheet, or has characters that are not seen.
    """
    if not 0 < len(value) <= MAX_TEXT:
        raise ValueError(f"the {kind} has {len(value):,} characters and has to have 1 to {MAX_TEXT:,}")
    try:
        return _text(value)
    except ValueError as error:
        raise ValueError(f"the {kind} {value!r} is not usable: {error}") from None


@lru_cache(maxsize=4096)
def _json_object(value: str) -> str:
    try:
        plain = json.loads(value)
        canonical = isinstance(plain, dict) and canonical_json(plain) == value
    except (ValueError, RecursionError):
        canonical = False
    if not canonical:
        raise ValueError("this has to be a JSON object with sorted keys and no spaces")
    return value


def _utc(value: str) -> str:
    if datetime.fromisoformat(value).utcoffset() != timedelta(0):
        raise ValueError("this has to be a UTC time such as 2026-01-31T12:00:00+00:00")
    return value


def _number(value: float) -> float:
    if math.isnan(value):
        raise ValueError("NaN is not a result")
    return value


def _within_floats(value: Any) -> Any:
    """Refuse text such as 1e999, which would silently become infinite."""
    if isinstance(value, str) and value.strip("+-. \t")[:1].isdigit() and math.isinf(_float(value)):
        raise ValueError(f"'{value[:30]}' is beyond the largest number (1.8e308); write inf if it has no bound")
    return value


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


Text = Annotated[str, Field(max_length=MAX_TEXT), AfterValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_TEXT), AfterValidator(_text)]
Json = Annotated[str, Field(max_length=MAX_JSON), AfterValidator(_json_object)]
Number = Annotated[float, BeforeValidator(_within_floats), AfterValidator(_number)]
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=_MAX_INT)]
Positive = Annotated[int, Field(ge=1, le=_MAX_INT)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Record(BaseModel):
    """One metric of one benchmark in one cell of a sweep; every column is required, in this order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Annotated[int, Field(ge=3, le=3)] = Field(description="version of this schema")
    sweep: Name = Field(description="name of the sweep that wrote the record")
    model: Name = Field(description="preset name, hub id or folder of the model")
    model_sha256: Name = Field(description="hash of the model folder, or its hub revision")
    task: Name = Field(description="target application that the model was finetuned on")
    method: Name = Field(description="registered name of the compression method; 'none' for the uncompressed model")
    label: Name = Field(description="name shown in tables and curves; the method's name unless chosen otherwise")
    options: Json = Field(description="options of the method, canonical JSON object")
    stage: Literal["pretrained", "finetuned", "compressed", "recovered"] = Field(
        description="state of the evaluated model: before finetuning, after it, after compression, after recovery"
    )
    ratio_target: Ratio = Field(description="ratio asked for: original over compressed parameters; 1 if uncompressed")
    ratio: Ratio = Field(description="ratio achieved over the whole model: params_original / params")
    kept: Ratio = Field(description="share of the original parameters that is left: 1 / ratio")
    ratio_matrices: Ratio = Field(description="ratio achieved over the compressed matrices alone; 1 if uncompressed")
    params_original: Positive = Field(description="parameters of the uncompressed model")
    params: Positive = Field(description="parameters of the evaluated model, everything counted")
    bytes: Count = Field(description="size of the model's weights on disk, in bytes; of rounded ones the packed file")
    runtime_bytes: Count = Field(
        description="size of the weights as the evaluation's engine held them, in bytes; rounded ones dequantised; 0 "
        "if unknown"
    )
    seed: Annotated[int, Field(ge=-_MAX_INT, le=_MAX_INT)] = Field(
        description="seed of training, compression and sampling"
    )
    benchmark: Name = Field(description="registered name of the benchmark")
    variant: Name = Field(
        description="benchmark with its shots, prompt and subset; other variants are other benchmarks"
    )
    metric: Name = Field(
        description="name of the metric, such as accuracy, pass@1, perplexity, decode_tokens_per_second"
    )
    scorer: Text = Field(description="rule that gave the verdicts; empty where there is only one")
    headline: bool = Field(description="whether this is the benchmark's main metric, shown by default")
    higher_is_better: bool = Field(description="direction of the metric")
    value: Number = Field(description="point estimate in the metric's own unit; accuracies are in 0..1")
    low: Number = Field(description="lower end of the interval; -inf where the data bound nothing")
    high: Number = Field(description="upper end of the interval; inf where the data bound nothing")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        description="coverage of the interval, 0.95 by default; of timed rounds 1 - 0.5^(n-1)"
    )
    n: Positive = Field(description="problems (or windows, or timed rounds) that the interval treats as units")
    steps_finetune: Count = Field(description="optimizer steps of the first finetuning")
    steps_compress: Count = Field(description="optimizer steps taken while compressing")
    steps_recover: Count = Field(description="optimizer steps of the second finetuning")
    steps_budget: Count = Field(
        description="optimizer steps after the first finetuning that the sweep allows, pruning included; 0 if the "
        "model depends on none"
    )
    tuned: Json = Field(
        description="how the learning rate after compression was chosen on held-out training examples, canonical JSON "
        "object: lr, grid, losses, tokens of the whole grid, held_out; empty where it was not"
    )
    tokens_finetune: Count = Field(description="training tokens of the first finetuning, padding excluded")
    tokens_compress: Count = Field(description="training tokens used while compressing, padding excluded")
    tokens_recover: Count = Field(description="training tokens of the second finetuning, padding excluded")
    seconds_finetune: Seconds = Field(description="wall-clock seconds of the finetune stage")
    seconds_fit: Seconds = Field(description="wall-clock seconds of the fit stage, which all ratios share")
    seconds_compress: Seconds = Field(description="wall-clock seconds of the compress stage")
    seconds_recover: Seconds = Field(description="wall-clock seconds of the recover stage")
    seconds_quantise: Seconds = Field(description="wall-clock seconds of the quantise stage")
    seconds_evaluate: Seconds = Field(description="wall-clock seconds of the evaluate stage")
    peak_memory_bytes: Count = Field(description="largest memory use of the cell's stages, in bytes; 0 if not measured")
    engine: Name = Field(description="what generated or scored: transformers, vllm, ...")
    dtype: Name = Field(description="number format of the evaluated weights, such as float32 or bfloat16")
    device: Name = Field(description="what the evaluation ran on, such as cpu or the name of the GPU")
    threads: Count = Field(description="CPU threads of the evaluation; 0 if unknown")
    isolation: Text = Field(description="how executed code was isolated; empty if none was executed")
    dataset_sha256: Name = Field(description="hash of the problems as they were used")
    prompt_sha256: Text = Field(description="hash of all prompts in order; empty where there are none")
    versions: Json = Field(
        description="versions of lowrank_bench, torch, transformers and python, canonical JSON object"
    )
    git_commit: Text = Field(description="commit of lowrank_bench; empty outside a repository")
    evaluated_at: Annotated[str, AfterValidator(_utc)] = Field(
        description="when the evaluate stage ended, UTC, ISO 8601"
    )
    stage_key: Name = Field(description="key of the evaluate stage: the folder with samples and provenance")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"value {self.value} is outside its interval {self.low}..{self.high}")
        if is_fraction(self.metric) and not 0 <= self.value <= 1:
            raise ValueError(f"{self.metric} is {self.value:g}; it is a share in 0..1, not percent")
        if not math.isclose(self.ratio, self.params_original / self.params, rel_tol=1e-6):
            raise ValueError(f"ratio {self.ratio} is not params_original / params")
        if not math.isclose(self.kept * self.ratio, 1, rel_tol=1e-6):
            raise ValueError(f"kept {self.kept} is not 1 / ratio")
        if (self.method == "none") != (self.stage in ("pretrained", "finetuned")):
            raise ValueError(f"method '{self.method}' does not go with stage '{self.stage}'")
        return self


COLUMNS = tuple(Record.model_fields)
ADDED_COLUMNS = {2: ("runtime_bytes", "seconds_quantise", BUDGET), 3: ("tuned",)}
"""Columns that earlier versions do not have, by the version that brought them."""
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
TIMING_COLUMNS = (
    *(c for c in COLUMNS if c.startswith("seconds_")),
    "peak_memory_bytes",
    "evaluated_at",
)
"""What may differ between two runs that are otherwise equal."""

KEY_COLUMNS = (
    *("sweep", "model", "model_sha256", "task", "method", "label", "options", "stage", "ratio_target"),
    *(BUDGET, "seed", "benchmark", "variant", "metric", "scorer", "engine", "dtype", "dataset_sha256", "prompt_sha256"),
)
"""What names a record: two rows with equal keys in one file are an error."""


def columns_of(version: int) -> tuple[str, ...]:
    """Return the columns of records of a version of the schema."""
    later = {column for added, columns in ADDED_COLUMNS.items() if added > version for column in columns}
    return tuple(column for column in COLUMNS if column not in later)


def expected_columns(versions: Iterable[Any]) -> tuple[str, ...]:
    """Return the columns of a file whose rows name these versions: this version's, unless all are of one earlier."""
    named = {str(version) for version in versions}
    version = named.pop() if len(named) == 1 else ""
    return columns_of(int(version)) if version.isdecimal() and 1 <= int(version) <= SCHEMA_VERSION else COLUMNS


def upgraded(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a row of any version up to this one with this version's columns; rows of this version as they are.

    Version 1 knew no rounded weights: what an engine held follows from the parameters and the dtype. It had one
    training budget a sweep: the steps after the first finetuning. Version 2 knew no tuning.
    """
    version = str(row.get("schema_version"))
    # A row with columns of a later version than it names is left as it is, and validation refuses it.
    if version not in ("1", "2") or any(column not in columns_of(int(version)) for column in row if column in COLUMNS):
        return dict(row)
    later = {"schema_version": SCHEMA_VERSION, "tuned": "{}"}
    if version == "2":
        return dict(row) | later
    # Rows are not validated yet: what is no number counts as 0 here, and is refused afterwards.
    params, width = str(row.get("params")), _WIDTHS.get(str(row.get("dtype")), 0)
    in_memory = int(params) * width if params.isdecimal() else 0
    steps = [str(row.get(column)) for column in ("steps_compress", "steps_recover")]
    budget = sum(map(int, steps)) if all(count.isdecimal() for count in steps) else 0
    return dict(row) | later | {"runtime_bytes": in_memory, "seconds_quantise": 0.0, BUDGET: budget}
