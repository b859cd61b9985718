"""Limits of a configuration's values, and checks that several of its models make."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

from pydantic import Field

from ...foundation.limits import MAX_COUNT, MAX_SEED

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


def check_repeats(kind: str, values: list[str]) -> None:
    """Raise a `ValueError` that names the first value that is given twice."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"the {kind} {repeated[0]} is given twice; name each {kind} once")
