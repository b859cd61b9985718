"""What a benchmark is: data, prompt, stop rule, extractors, scorers, and the metrics that come out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..foundation.errors import UserError
from ..foundation.files import finite
from ..foundation.progress import Progress
from ..foundation.registry import Registry
from .engines.base import Engine

Stage = Literal["pretrained", "finetuned"]
"""``pretrained`` models get the few-shot prompt, ``finetuned`` ones the finetuning prompt and its headline rule."""


@dataclass(frozen=True)
class Metric:
    """One number of one benchmark.

    Attributes:
        name: ``accuracy``, ``pass@1``, ``perplexity``, ``nats_per_token``, ...
        value: the point estimate, in the metric's own unit (accuracies in 0..1).
        low, high: ends of the 95 % interval.
        n: how many problems (or windows) the interval treats as units.
        headline: whether tables and curves show it by default; exactly one metric of a benchmark is the headline.
        higher_is_better: direction.
        scorer: the rule that gave the verdicts, e.g. ``strict`` or ``answer-is``; empty where there is only one.
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    headline: bool = True
    higher_is_better: bool = True
    scorer: str = ""


def metric_to_plain(metric: Metric) -> dict[str, Any]:
    """Return a metric as plain data for JSON.

    JSON has no infinity: an end that bounds nothing is None, and so is a perplexity beyond the largest number, with a
    ``reason`` beside it.
    """
    fields: dict[str, Any] = finite(asdict(metric))
    if fields["value"] is None:
        fields["reason"] = f"{metric.name} is beyond the largest number (1.8e308)"
    return fields


def metric_from_plain(fields: Mapping[str, Any]) -> Metric:
    """Return the metric that `metric_to_plain` wrote; earlier versions wrote infinities themselves."""
    known = {name: value for name, value in fields.items() if name != "reason"}
    for name, unbounded in (("value", math.inf), ("low", -math.inf), ("high", math.inf)):
        if known[name] is None:
            known[name] = unbounded
    # A value beyond all numbers usually has a lower end beyond them too; with n of 1 it bounds nothing instead.
    if fields["value"] is None and fields["low"] is None and fields["n"] > 1:
        known["low"] = math.inf
    return Metric(**known)


@dataclass
class Outcome:
    """What one evaluation leaves behind.

    Attributes:
        metrics: exactly one of them is the headline.
        samples: one plain-data dict per completion (per window for perplexity); fields as in `samples`.
        dataset_sha256: hash of the problems as they were used.
        prompt_sha256: hash over the hashes of all problems' prompts in order, as token-free text.
        details: plain data written beside the metrics (isolation level, windowing, counts).
        variant: the variant as it was run, where the name alone says too little (another context, part of the data);
            empty otherwise.
    """

    metrics: list[Metric]
    samples: list[dict[str, Any]]
    dataset_sha256: str
    prompt_sha256: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    variant: str = ""


@dataclass(frozen=True)
class EvalSettings:
    """How to evaluate.

    Attributes:
        data_dir: folder with local datasets (``--data``), or None for the hub.
        limit: only the first ``limit`` problems, or None for all.
        stage: whether the model was finetuned on the task.
        batch_size: prompts given to the engine at once.
        max_new_tokens: overrides the benchmark's own completion limit when set.
        seed: seed of generated (toy) data and of sampling.
        allow_weak_isolation: run generated code even where only resource limits hold it.
        samples: completions per problem; more than one needs a temperature.
        temperature: 0 is greedy.
        top_p: nucleus share of sampling, 1 is off.
        context: window of a perplexity in tokens, or None for the benchmark's own.
        bos: whether each window of a perplexity begins with a beginning-of-sequence token, where the benchmark
            `has_bos_option`; without it only the whole text does (the GPTQ recipe).
        chat: instructions are conversations, which the tokenizer's chat template renders; few-shot prompts stay text.
        include_path: folder with YAML files of further tasks of lm-evaluation-harness.
    """

    data_dir: Path | None = None
    limit: int | None = None
    stage: Stage = "finetuned"
    batch_size: int = 64
    max_new_tokens: int | None = None
    seed: int = 42
    allow_weak_isolation: bool = False
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    context: int | None = None
    bos: bool = False
    chat: bool = False
    include_path: Path | None = None


class Benchmark(ABC):
    """One evaluation set with its prompt, stop rule, extractors and scorers.

    Attributes:
        name: the registered name; set by the registry.
        variant: the full name that goes into records, e.g. ``gsm8k-0shot-alpaca``; depends on the stage.
        generates: whether completions are sampled (else likelihoods are read).
        runs_code: whether model output is executed, so that isolation is checked before generation starts.
        has_context: whether `EvalSettings.context` applies.
        has_bos_option: whether `EvalSettings.bos` applies.
    """

    name: ClassVar[str]
    generates: ClassVar[bool] = True
    runs_code: ClassVar[bool] = False
    has_context: ClassVar[bool] = False
    has_bos_option: ClassVar[bool] = False

    def is_generating(self, settings: EvalSettings) -> bool:
        """Return whether completions are sampled with these settings."""
        return self.generates

    @abstractmethod
    def variant(self, settings: EvalSettings) -> str:
        """Return the name with its variant: shots, prompt, subset."""

    @abstractmethod
    def check(self, settings: EvalSettings) -> None:
        """Raise a `UserError` if data or isolation are missing; cheap, called before any stage starts."""

    def check_model(self, settings: EvalSettings, tokenizer: Any, context: int) -> None:  # noqa: B027 - may do nothing
        """Raise a `UserError` if this model cannot be measured; called before any stage starts.

        Args:
            settings: how it would be evaluated.
            tokenizer: the model's.
            context: of the model, in tokens.
        """

    @abstractmethod
    def identity(self, settings: EvalSettings) -> Mapping[str, Any]:
        """Return plain data that changes whenever the result may change (data hashes, prompt version, rules)."""

    def longest_sequence(self, tokenizer: Any, settings: EvalSettings, context: int) -> int:
        """Return the most tokens, prompt and completion, of any sequence that `evaluate` asks an engine for.

        Memory for its keys and values is what an engine must have. Where a benchmark cannot say, the answer is the
        model's whole context.

        Args:
            tokenizer: the model's.
            settings: as for `evaluate`.
            context: the model's longest sequence in tokens.
        """
        return context

    @abstractmethod
    def evaluate(self, engine: Engine, settings: EvalSettings, progress: Progress | None = None) -> Outcome:
        """Measure the engine's model."""


def check_not_empty(name: str, rows: Sequence[Any]) -> None:
    """Raise a `UserError` if a benchmark has no problems."""
    if not rows:
        raise UserError(f"the data of '{name}' have no problems; fetch them again, or name another folder with --data")


benchmarks: Registry[Benchmark] = Registry(
    "benchmark",
    f"{__package__}.benchmarks",
    Path(__file__).parent / "benchmarks",
    "lowrank_bench.benchmarks",
    {"lm_eval": f"{__package__}.harness.benchmark:harness_benchmark"},
)
