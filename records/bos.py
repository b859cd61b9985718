"""Perplexities with a BOS at the start of each window, beside those without: which is which, and how far they differ.

The variant of the first is that of the second with ``-bos`` behind it; see `evals.kinds.perplexity`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .metrics import format_value, is_perplexity

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = "-bos"
TELLING = 1.05
"""Factor between the two perplexities from which on both are shown."""


def variant_without(variant: str) -> str:
    """Return the variant without BOS of a variant with one, or the empty string."""
    return variant.removesuffix(SUFFIX) if variant.endswith(SUFFIX) else ""


def differ(metric: str, with_bos: float, without: float) -> bool:
    """Whether two values of one model are more than 5 % of perplexity apart.

    Args:
        metric: a perplexity, or its logarithm in nats.
        with_bos, without: the two values.
    """
    if with_bos == without:
        return False
    if not is_perplexity(metric):
        return abs(with_bos - without) > math.log(TELLING)
    return max(with_bos, without) > TELLING * min(with_bos, without)


def bos_sentence(variant: str, metric: str, with_bos: float, without: float) -> str:
    """Return what a reader of two values of one uncompressed model should know.

    Args:
        variant: with BOS.
        metric: of both.
        with_bos, without: the two values.
    """
    values = (
        f"{metric} of the uncompressed model is {format_value(metric, with_bos)} with a BOS at the start of each "
        f"window ({variant}) and {format_value(metric, without)} without ({variant_without(variant)}, the recipe of "
        "GPTQ's code)"
    )
    if without > with_bos:
        return f"{values}: the number without BOS is for comparison with numbers measured so, not the model's quality"
    return f"{values}: compare only numbers that were measured alike"


def without_bos_references(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the records but those of variants without BOS that only uncompressed models have, beside one with BOS."""
    variants = set(frame["variant"])
    compressed = set(frame.loc[frame["method"] != "none", "variant"])
    beside = {variant for variant in variants - compressed if variant + SUFFIX in variants}
    return frame[~frame["variant"].isin(beside)] if beside else frame
