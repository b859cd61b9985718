"""What is rounded to how many bits: 8-bit factors, and the controls, plain or with a low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...foundation.errors import UserError, unknown

PACKED_FILE = "packed.safetensors"
"""In the folder of a quantise stage, beside the dequantised checkpoint that is evaluated."""


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

FACTORS_AND_EMBEDDINGS = Scheme(bits=8, embeddings=True)
"""The same for a method that factorises the token embedding, which it may have left dense too."""


class Correction(BaseModel):
    """A low-rank matrix beside a rounded one, W ≈ Q(W) + B A with B A ≈ W - Q(W).

    Attributes:
        rank: r of B A, in each matrix at most its smaller side; 0 is none.
        whiten: least error of the outputs on calibration data, as svd-llm has it; False is least error of the weights,
            and reads no data.
        samples: examples to read; None reads all.
        batch_size: examples per forward pass; changes results by rounding only.
        calibration: task whose training texts are read; empty is the task of the run.
        length: longest example in tokens; None takes the task's own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(default=16, ge=0, le=1 << 20)
    whiten: bool = True
    samples: int | None = Field(default=256, ge=1)
    batch_size: int = Field(default=8, ge=1)
    calibration: str = ""
    length: int | None = Field(default=None, ge=8)


class Control(NamedTuple):
    """A dense model that is only rounded, or rounded and corrected.

    Attributes:
        scheme: what is rounded.
        correction: what is added to it, or None.
        free_rank: whether the user left the rank open, so that it can follow from the bytes that are asked for.
    """

    scheme: Scheme
    correction: Correction | None = None
    free_rank: bool = False


CORRECTED = "rtn4+r"
"""The control with a correction."""

CONTROLS: Mapping[str, Scheme] = {
    "rtn-int8": Scheme(bits=8),
    "rtn-int4": Scheme(bits=4),
    CORRECTED: Scheme(bits=4),
}
"""How each control rounds a dense model, by the name of its row."""

SUMMARIES: Mapping[str, str] = {
    "rtn-int8": "dense matrices rounded to the nearest of 8 bits, group by group",
    "rtn-int4": "dense matrices rounded to the nearest of 4 bits, group by group",
    CORRECTED: "rtn-int4, and a low-rank correction of what rounding changed, whitened as in svd-llm",
}
"""What each control is, in one line."""

_VALUES = {
    "group": "group is a multiple of 8 such as 64",
    "embeddings": "embeddings is true or false",
    "rank": "rank is a whole number such as 16, 0 for no correction",
    "whiten": "whiten is true or false",
    "samples": "samples is a number of examples such as 256, or null for all",
    "batch_size": "batch_size is a number of examples such as 8",
    "calibration": "calibration is the name of a task",
    "length": "length is a number of tokens from 8 on, or null",
}


def control_options(name: str) -> tuple[str, ...]:
    """Return the options that a control takes."""
    own = tuple(Correction.model_fields) if name == CORRECTED else ()
    return (*(option for option in Scheme.model_fields if option != "bits"), *own)


def parse_control(name: str, options: Mapping[str, Any]) -> Control:
    """Return a control with a user's options.

    Raises:
        UserError: there is no such control, or no such option.
    """
    if name not in CONTROLS:
        raise unknown("control", name, list(CONTROLS))
    allowed = control_options(name)
    if unusable := sorted(set(options) - set(allowed)):
        raise UserError(
            f"the control '{name}' has no option '{unusable[0]}'; it has {', '.join(allowed[:-1])} and {allowed[-1]}, "
            f"such as {name}:group=64 (columns that share a scale)"
        )
    rounding = {option: value for option, value in options.items() if option in Scheme.model_fields}
    correcting = {option: value for option, value in options.items() if option not in rounding}
    try:
        scheme = Scheme(**(CONTROLS[name].model_dump() | rounding))
        if name != CORRECTED:
            return Control(scheme)
        return Control(scheme, Correction(**correcting), free_rank="rank" not in options)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0])
        raise UserError(f"{option}={first['input']} is not usable in '{name}'; {_VALUES[option]}") from None
