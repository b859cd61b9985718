"""The learning-rate schedule of a training, in transformers' words."""

from __future__ import annotations

from typing import Any

from ...foundation.errors import UserError


def schedule_arguments(name: str, min_lr_rate: float) -> dict[str, Any]:
    """Return the arguments that choose a schedule: the one that is named, or the cosine with a floor.

    Args:
        name: transformers' name.
        min_lr_rate: where the cosine ends, as a share of the peak; 0 for no floor.

    Raises:
        UserError: a floor under another schedule.
    """
    if not min_lr_rate:
        return {"lr_scheduler_type": name}
    if name != "cosine":
        raise UserError(
            f"a floor of the learning rate (min_lr_rate {min_lr_rate:g}) belongs to the cosine schedule, and this is "
            f"{name}; write schedule: cosine, or min_lr_rate=0"
        )
    return {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": min_lr_rate}}
