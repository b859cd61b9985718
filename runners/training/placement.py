"""Where a training keeps weights, gradients and moments: the first placement that fits the machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from ...foundation.errors import UserError, unknown
from ..estimates.machine import Machine
from .memory import TrainingPeak
from .settings import Placement, TrainSettings

Wanted = Literal["auto", "device", "fsdp2", "host-moments", "8-bit"]
_GIB = 2**30
_ADAMW = ("adamw_torch", "adamw_torch_fused")
_SAID: dict[Placement, str] = {
    "device": "everything on the device",
    "fsdp2": "weights, gradients and moments shared out over the GPUs (FSDP2)",
    "host-moments": "AdamW's moments in the host's memory",
    "8-bit": "AdamW's moments in 8 bits",
}

EstimatePeak = Callable[[Placement, int], TrainingPeak]
"""The peak of one training process for a placement and a number of processes."""


class NothingFits(UserError):
    """No placement of a training fits the machine."""


@dataclass(frozen=True)
class Choice:
    """How a training is placed.

    Attributes:
        placement: see `training_memory.Placement`.
        processes: that train together.
        why: in words for the record and the plan; empty where everything is on one device, as asked.
    """

    placement: Placement
    processes: int
    why: str


def choose_placement(
    estimate_peak: EstimatePeak,
    machine: Machine,
    asked: Wanted = "auto",
    title: str = "training",
    optimizer: str = "adamw_torch",
    sharing: int | None = None,
) -> Choice:
    """Return the first placement that fits a machine, or the one that was asked for.

    In this order: one device; FSDP2 over all GPUs, where there are several; the same AdamW with its moments in the
    host's memory; AdamW with moments in 8 bits. A training on a CPU is always on the device. What was asked for is
    taken at its word: the stage itself refuses what certainly does not fit.

    Args:
        estimate_peak: the peak for a placement and a number of processes.
        machine: what there is.
        asked: ``auto``, or a placement.
        title: of the stage, for messages.
        sharing: how many processes FSDP2 may use; None for one a GPU, below 2 for none.
        optimizer: transformers' name; moments move to the host and shrink to 8 bits for AdamW alone.

    Raises:
        NothingFits: as it says.
        UserError: FSDP2 was asked for where there are no two GPUs.
    """
    if asked not in get_args(Wanted):
        raise unknown("placement", asked, list(get_args(Wanted)))
    processes = machine.count if sharing is None else min(sharing, machine.count)
    if asked == "fsdp2" and processes < 2:
        raise UserError(
            f"--placement fsdp2 shares {title} out over GPUs, which needs two of them and a batch that can be divided; "
            f"there is {machine.name}; use --accelerate FILE for processes on a CPU, or --placement auto"
        )
    if asked in ("host-moments", "8-bit") and optimizer not in _ADAMW:
        raise UserError(f"--placement {asked} is for AdamW's moments, but the optimizer is {optimizer}; leave it out")
    if asked != "auto":
        return Choice(asked, processes if asked == "fsdp2" else 1, f"{_SAID[asked]}, as asked")
    if machine.device == "cpu":
        return Choice("device", 1, "")
    adamw = optimizer in _ADAMW
    placements: list[tuple[Placement, int]] = [("device", 1), *((("host-moments", 1), ("8-bit", 1)) if adamw else ())]
    if processes > 1:
        placements.insert(1, ("fsdp2", processes))
    needs: list[str] = []
    for placement, processes in placements:
        peak = estimate_peak(placement, processes)
        if peak.device <= machine.device_bytes and peak.host <= machine.host_bytes:
            return Choice(placement, processes, _why(placement, processes, needs, machine))
        sizes = f"{peak.device / _GIB:.0f} GiB of a GPU and {peak.host / _GIB:.0f} of the host"
        needs.append(f"{_SAID[placement]}: {sizes}")
    raise NothingFits(
        f"no placement of {title} fits {machine.name}, of which {machine.device_bytes / _GIB:.0f} GiB a GPU and "
        f"{machine.host_bytes / _GIB:.0f} GiB of the host are free ({'; '.join(needs)}); use more or larger GPUs, a "
        "smaller model, a smaller micro_batch_size, or --training-free"
    )


def placed(settings: TrainSettings, choice: Choice) -> TrainSettings:
    """Return settings with a placement."""
    return settings.model_copy(update={"placement": choice.placement})


def optimizer_name(settings: TrainSettings) -> str:
    """Return transformers' name of the optimizer that a training runs with.

    Raises:
        UserError: 8-bit moments need torchao, which is not installed.
    """
    if settings.placement != "8-bit":
        return settings.optimizer
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            "AdamW with moments in 8 bits needs torchao, which is not installed; type pip install 'lowrank-bench[int8]'"
        )
    return "adamw_torch_8bit"


def _why(placement: Placement, processes: int, needs: list[str], machine: Machine) -> str:
    if placement == "device":
        return ""
    over = f" by {processes} processes" if processes > 1 else ""
    return (
        f"{_SAID[placement]}{over}, because {'; '.join(needs)} would be needed and {machine.name} has "
        f"{machine.device_bytes / _GIB:.0f} and {machine.host_bytes / _GIB:.0f} GiB free"
    )
