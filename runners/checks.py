"""What is checked of a model and the chosen benchmarks before any work starts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..evals.base import Benchmark, EvalSettings
from ..evals.tasks.base import get_task
from ..evals.tasks.prompts import adds_bos, check_has_bos
from ..foundation.errors import UserError, unknown
from ..models.footprint import context_length
from ..models.presets import ModelSource
from .config.evaluation import BOS_CHOICES
from .tokenizers import PlanTokenizer
from .training.data import TrainSetSurvey


@dataclass(frozen=True)
class BosWindows:
    """With which windows the perplexities of joined texts are measured: True for those that each begin with a BOS.

    Attributes:
        every: of every model, in the order in which they were asked for.
        uncompressed: of uncompressed models besides.
        note: what a reader of the numbers should know, or empty.
    """

    every: tuple[bool, ...] = (False,)
    uncompressed: tuple[bool, ...] = ()
    note: str = ""

    def settings(
        self, benchmark: Benchmark, settings: EvalSettings, compressed: bool
    ) -> Iterator[tuple[str, EvalSettings]]:
        """Yield how a benchmark evaluates a model, each with what sets it apart from the first: ``bos``, ``no-bos``.

        Args:
            benchmark: one without windows of both kinds is evaluated once.
            settings: all else.
            compressed: whether the model is a compressed one.
        """
        kinds = (*self.every, *(() if compressed else self.uncompressed))
        for position, bos in enumerate(kinds if benchmark.has_bos_option else kinds[:1]):
            yield ("bos" if bos else "no-bos") if position else "", replace(settings, bos=bos)


def check_model(source: ModelSource, config: Any, chosen: Iterable[tuple[Benchmark, EvalSettings]]) -> None:
    """Raise a `UserError` if a benchmark cannot measure this model, such as one whose prompts are all too long.

    Args:
        source: the model.
        config: its configuration.
        chosen: benchmarks and how each would be evaluated.
    """
    tokenizer, context = PlanTokenizer(source), context_length(config)
    tokenizer.check()
    for benchmark, settings in chosen:
        if type(benchmark).check_model is not Benchmark.check_model:  # which asks nothing
            fits = partial(benchmark.check_model, settings, tokenizer, context)
            tokenizer.counted("fits", [benchmark.identity(settings), context], fits)


def check_rendering(source: ModelSource, survey: TrainSetSurvey) -> None:
    """Raise a `UserError` if a model's chat template cannot write a training example, of those in the sample."""
    tokenizer, identity = PlanTokenizer(source), survey.identity

    def render() -> None:
        get_task(identity.task).check_rendering(tokenizer, survey.sample)

    tokenizer.counted("rendering", identity.model_dump(mode="json"), render)


def bos_windows(asked: Sequence[str], source: ModelSource | None, chosen: Iterable[Benchmark]) -> BosWindows:
    """Return with which windows perplexities are measured.

    ``auto`` is what the model's tokenizer does with a text. Where that is a BOS, uncompressed models are measured
    without one too: published numbers are (the recipe of GPTQ's code).

    Args:
        asked: ``always``, ``never``, ``auto``, or several of them.
        source: the model; None where its tokenizer cannot be read, in a dry run: then it is taken to add a BOS.
        chosen: the benchmarks; where none has windows with and without BOS, nothing is read.

    Raises:
        UserError: another word, ``always`` where no benchmark has the option, or where the tokenizer has no BOS.
    """
    for word in asked:
        if word not in BOS_CHOICES:
            raise unknown("BOS rule", word, BOS_CHOICES)
    names = list(dict.fromkeys(benchmark.name for benchmark in chosen if benchmark.has_bos_option))
    if not names:
        if "always" in asked:
            raise UserError(
                "--bos is for perplexities of joined texts (wikitext2, c4) and none is asked for; leave it out"
            )
        return BosWindows()
    added = True
    if source is not None:
        tokenizer = PlanTokenizer(source)
        if "always" in asked:
            check_has_bos(tokenizer)
        added = tokenizer.counted("adds BOS", None, lambda: adds_bos(tokenizer))
    every = tuple(dict.fromkeys(word == "always" or (word == "auto" and added) for word in asked))
    if "auto" in asked and added:
        return BosWindows(every, () if False in every else (False,))
    if added and True not in every:
        return BosWindows(
            every,
            note="the tokenizer of this model begins every text with a BOS, and the windows of "
            f"{' and '.join(names)} have none (the recipe of GPTQ's code): models that need it score far worse than "
            "they are; leave out --bos never to give each window one",
        )
    return BosWindows(every)
