"""What is checked of a model and the chosen benchmarks before any work starts."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from ..evals.base import Benchmark, EvalSettings
from ..evals.tasks.prompts import adds_bos, check_has_bos
from ..foundation.errors import UserError, unknown
from ..models.footprint import context_length
from ..models.presets import ModelSource
from .tokenizers import PlanTokenizer

BOS_CHOICES = ("auto", "always", "never")


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


def begins_with_bos(wanted: str, source: ModelSource, chosen: Iterable[Benchmark]) -> tuple[bool, str]:
    """Return whether windows of perplexities begin with a BOS, and what a reader of the numbers should know, or "".

    Args:
        wanted: ``always``, ``never``, or ``auto`` for what the model's tokenizer does with a text.
        source: the model.
        chosen: the benchmarks; where none has windows with and without BOS, nothing is read.

    Raises:
        UserError: another word, ``always`` where no benchmark has the option, or where the tokenizer has no BOS.
    """
    if wanted not in BOS_CHOICES:
        raise unknown("BOS rule", wanted, BOS_CHOICES)
    names = [benchmark.name for benchmark in chosen if benchmark.has_bos_option]
    if not names:
        if wanted == "always":
            raise UserError(
                "--bos is for perplexities of joined texts (wikitext2, c4) and none is asked for; leave it out"
            )
        return False, ""
    tokenizer = PlanTokenizer(source)
    if wanted == "always":
        check_has_bos(tokenizer)
    added = tokenizer.counted("adds BOS", None, lambda: adds_bos(tokenizer))
    if wanted == "never" and added:
        return False, (
            f"the tokenizer of this model begins every text with a BOS, and the windows of {' and '.join(names)} have "
            "none (the GPTQ recipe): models that need it score far worse than they are; add --bos auto to give each one"
        )
    return wanted == "always" or (wanted == "auto" and added), ""
