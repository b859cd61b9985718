"""The grid of ``--tune``: ``lr=1e-4,3e-4,1e-3``."""

from __future__ import annotations

from collections.abc import Sequence

from ...foundation.errors import UserError
from ...foundation.limits import MAX_LEARNING_RATE
from .checks import check_repeats

_EXAMPLE = "--tune lr=1e-4,3e-4,1e-3"


def split_grid(text: str) -> list[float]:
    """Return the learning rates of ``lr=1e-4,3e-4``.

    Raises:
        UserError: another setting than the learning rate, or no numbers.
    """
    name, equals, values = text.partition("=")
    if not equals or name.strip() not in ("lr", "learning_rate"):
        raise UserError(f"'{text}' is no grid; the learning rate after compression is what can be tuned: {_EXAMPLE}")
    try:
        return [float(part) for part in values.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"'{values}' are no learning rates; write numbers with commas: {_EXAMPLE}") from None


def check_grid(rates: Sequence[float]) -> tuple[float, ...]:
    """Return learning rates, ascending.

    Raises:
        ValueError: fewer than two, one twice, or one that is none.
    """
    for rate in rates:
        if not 0 < rate <= MAX_LEARNING_RATE:
            raise ValueError(
                f"{rate:g} is no learning rate; write numbers above 0 and up to {MAX_LEARNING_RATE:g}: {_EXAMPLE}"
            )
    check_repeats("learning rate", [f"{rate:g}" if rate == float(f"{rate:g}") else repr(rate) for rate in rates])
    if len(rates) < 2:
        raise ValueError(f"--tune chooses among learning rates and needs at least two: {_EXAMPLE}; --lr sets one")
    return tuple(sorted(rates))


def grid_text(rates: Sequence[float]) -> str:
    """Return the text that `split_grid` reads."""
    return f"lr={','.join(f'{rate:g}' for rate in rates)}"
