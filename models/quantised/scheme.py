"""What is rounded to how many bits: 8-bit factors, and the controls without any low rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...foundation.errors import UserError, unknown


class Scheme(BaseModel):
    """How a model's weights are rounded.

    Factorised layers get one scale for each component and need 8 bits; dense matrices get one for each group of columns
    of each row. What is no matrix (norms, biases) stays as it is.

    Attributes:
        bits: of the integers.
        group: columns of a dense matrix that share a scale; None is 128, or 32 where the matrix is narrower.
        embeddings: whether a dense embedding, and the head that is tied to it, is rounded too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: int = Field(ge=4, le=8)
    group: int | None = Field(default=None, ge=8, le=1 << 20, multiple_of=8)
    embeddings: bool = False


FACTORS = Scheme(bits=8)
"""Of ``--bits 8``: factors, and the matrices that a method left dense."""

CONTROLS: Mapping[str, Scheme] = {"rtn-int8": Scheme(bits=8), "rtn-int4": Scheme(bits=4)}
"""Plain quantisation of a dense model by rounding to the nearest, by the name of its row."""


def control_scheme(name: str, options: Mapping[str, Any]) -> Scheme:
    """Return the scheme of a control with a user's options.

    Raises:
        UserError: there is no such control, or no such option.
    """
    if name not in CONTROLS:
        raise unknown("control", name, list(CONTROLS))
    if unusable := sorted(set(options) - {"group", "embeddings"}):
        raise UserError(
            f"the control '{name}' has no option '{unusable[0]}'; it has group (columns that share a scale, a multiple "
            f"of 8) and embeddings (true or false): {name}:group=64"
        )
    try:
        return Scheme(**(CONTROLS[name].model_dump() | dict(options)))
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{first['loc'][0]}={first['input']} is not usable in '{name}'; group is a multiple of 8 such as 64, and "
            "embeddings is true or false"
        ) from None
