"""The dtype of the products in the passes that statistics are gathered from: float32, or bfloat16 by autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, get_args

from ...foundation.errors import unknown

if TYPE_CHECKING:
    import torch

PassDtype = Literal["float32", "bfloat16"]
_pass_dtype: ContextVar[PassDtype] = ContextVar("dtype of calibration passes", default="float32")


@contextmanager
def passes_in(dtype: PassDtype) -> Iterator[None]:
    """Have all passes of `collection` compute in a dtype while the context is open.

    In bfloat16 the model runs under autocast as in a training: weights stay float32 and are cast for each product,
    norms, softmax and the residual stream stay float32. Sums of moments are float64 and those of the Fisher
    information float32 in either case; so are decompositions, which never run under autocast.

    Args:
        dtype: ``float32`` or ``bfloat16``.

    Raises:
        UserError: another dtype.
    """
    if dtype not in get_args(PassDtype):
        raise unknown("dtype of calibration", str(dtype), list(get_args(PassDtype)))
    token = _pass_dtype.set(dtype)
    try:
        yield
    finally:
        _pass_dtype.reset(token)


def autocast(device: torch.device | str) -> torch.autocast:
    """Return the context that a forward pass on a device runs in; the backward pass follows from it.

    Casts of weights are not kept: each is used once a pass, and all together would take 2 bytes a parameter.
    """
    import torch  # late: specs of stages, which name the dtype, are read without it

    narrow = _pass_dtype.get() == "bfloat16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=narrow, cache_enabled=False)
