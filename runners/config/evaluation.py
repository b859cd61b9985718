"""What is measured and how: the part of a configuration that changes scores alone."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import (
    ConfigDict,
    Field,
    field_validator,
)

from ...foundation.errors import unknown
from ...foundation.limits import MAX_COUNT, MAX_SEED
from ...foundation.strict_numbers import StrictNumbers
from .checks import Positive, check_repeats
from .options import Option

BosRule = Literal["auto", "always", "never"]
BOS_CHOICES = get_args(BosRule)


class Evaluation(StrictNumbers):
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
        check_repeats("context", [str(value) for value in values or ()])
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
        check_repeats("BOS rule", list(values))
        return values
