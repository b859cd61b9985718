"""What of a sweep's inputs a plan can read on this machine: without a hub, plans are made from what is known here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...evals.base import Benchmark, EvalSettings, benchmarks
from ...evals.hosting.choice import AUTO, Choice
from ...evals.kinds.generative import GenerativeBenchmark
from ...evals.kinds.perplexity import PerplexityBenchmark
from ...evals.tasks.base import get_task
from ...foundation.errors import UserError
from ...models.hub import hub_answers, is_cached, is_offline
from ...models.known_shapes import SHAPES, check_preset, known_skeleton
from ...models.loading import load_skeleton
from ...models.presets import ModelSource
from ..config import SweepConfig
from ..training.data import survey_train_set
from .assumptions import BENCHMARKS, TRAINING_SETS, UNKNOWN_BENCHMARK
from .machine import Machine

_BY_PRESET = "for the plan, the shapes known here and assumed lengths count"


@dataclass(frozen=True)
class AtHand:
    """Which inputs can be read.

    Attributes:
        config: the model's configuration; else the shapes known here count.
        tokenizer: the model's.
        data: training sets and benchmarks that are not generated; else their published sizes count.
        notes: what a reader of the plan should know.
    """

    config: bool = True
    tokenizer: bool = True
    data: bool = True
    notes: tuple[str, ...] = ()


def find_at_hand(config: SweepConfig, source: ModelSource, names: Sequence[str], assumed: Machine | None) -> AtHand:
    """Look what a dry run can read.

    The hub is asked at most once, and not at all where a machine is assumed and the shapes are known.

    Args:
        config: the sweep.
        source: its model.
        names: of its benchmarks.
        assumed: the machine that the user named, or None for this one.

    Raises:
        UserError: nothing says what the model is.
    """
    folder, files = source.is_local, (source.location, source.revision)
    cached = folder or is_cached(*files, "config.json")
    tokens = folder or is_cached(*files, "tokenizer.json", "tokenizer.model")
    known_data = config.execution.data is None and _reads_published(config, names)
    known = source.location in SHAPES
    here = cached and tokens and not known_data
    answers = not here and (assumed is None or not (cached or known)) and hub_answers()
    if not (cached or known or answers):
        raise UserError(
            f"the shapes of {source.location} are not on this machine and the hub cannot be reached; name a preset "
            "(bench models lists them), the model's folder, or run it where the hub is"
        )
    has_config, has_tokenizer = cached or answers, tokens or answers
    has_data = config.execution.data is not None or (
        assumed is None and (not known_data or answers or _cached_data(config, names))
    )
    notes = []
    if not has_config:
        notes.append(f"the hub was not asked for {source.location}: its shapes are those known here")
    if not has_data and known_data:
        notes.append("no data were read (no --data, no hub): published sizes and assumed lengths count")
    elif not has_tokenizer:
        notes.append("the model's tokenizer is not on this machine: assumed lengths count")
    return AtHand(has_config, has_tokenizer, has_data, tuple(notes))


def _reads_published(config: SweepConfig, names: Sequence[str]) -> bool:
    source = config.training.train_set or (get_task(config.task).default_source(None) if config.task else None)
    return source in TRAINING_SETS or any(name in BENCHMARKS for name in names)


def _cached_data(config: SweepConfig, names: Sequence[str]) -> bool:
    """Whether an earlier run has left all data in the hub's cache, which only an offline environment tells quickly."""
    if not is_offline():
        return False
    try:
        survey_train_set(config.task, config.training.train_set, None)
        for name in names:
            benchmarks.get(name)().identity(EvalSettings())
    except UserError:
        return False
    return True


def counts_by_size(name: str, at_hand: AtHand) -> bool:
    """Whether of a benchmark only the published size is known; generated problems need no data."""
    return not at_hand.data and name in BENCHMARKS


def assumed_longest(benchmark: Benchmark, settings: EvalSettings, context: int) -> int:
    """Return the most tokens of a sequence where data or tokenizer are not at hand: the longest prompts known."""
    if isinstance(benchmark, PerplexityBenchmark):
        return benchmark.longest_sequence(None, settings, context)
    new = benchmark.max_new_tokens(settings) if isinstance(benchmark, GenerativeBenchmark) else 0
    return min(BENCHMARKS.get(benchmark.name, UNKNOWN_BENCHMARK).longest + new, context)


def assumed_device(asked: str) -> str:
    """Return the torch device of an assumed machine, which torch is never asked about; a `UserError` for others."""
    if asked not in ("auto", "cuda"):
        raise UserError(f"--assume plans for GPUs, and --device {asked} is none of them; leave one of the two out")
    return "cuda"


def assumed_engine(asked: str) -> Choice | None:
    """Return vLLM where it is asked for or free to choose: what is here says nothing about another machine."""
    note = "the assumed machine is taken to have vLLM" if asked == AUTO else ""
    return Choice("vllm", note) if asked in (AUTO, "vllm") else None


def read_skeleton(source: ModelSource, at_hand: AtHand, dry: bool) -> tuple[Any, AtHand]:
    """Return the model on the meta device; in a dry run from the known shapes where the hub does not give them."""
    if at_hand.config:
        try:
            skeleton: Any = load_skeleton(source.location, source.revision)
        except UserError as error:
            if not (dry and source.location in SHAPES):
                raise
            at_hand = replace(at_hand, config=False, tokenizer=False, notes=(*at_hand.notes, f"{error}; {_BY_PRESET}"))
        else:
            check_preset(source, skeleton.config)
            return skeleton, at_hand
    return known_skeleton(source.location), at_hand
