"""Whether a plan fits its machine: what each kind of stage takes, on the device and on the host beside it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ...foundation.memory import BASE_BYTES
from ...models.footprint import Footprint
from ..training.memory import TrainingPeak
from ..training.placement import Choice
from .machine import Machine
from .memory import LoadMode

_GIB = 2**30


@dataclass(frozen=True)
class Demand:
    """What one kind of stage takes at its peak.

    Attributes:
        title: the stage, for messages.
        device: bytes of the GPU; 0 on a CPU.
        host: bytes of the host's memory; of all processes where several train together.
        advice: what makes it smaller.
    """

    title: str
    device: int
    host: int
    advice: str


def load_demands(modes: Mapping[str, LoadMode]) -> list[Demand]:
    """Return what fits and compressions take, of those whose peak is known."""
    demands = []
    for title, mode in modes.items():
        if mode.peak:
            advice = "fewer samples in a batch (batch_size), or " if mode.layerwise else "--memory layerwise, or "
            advice = mode.advice or f"{advice}a machine with more memory"
            demands.append(Demand(title, mode.peak.device, mode.peak.host, advice))
    return demands


def training_demands(trainings: Mapping[str, tuple[Choice, TrainingPeak]]) -> list[Demand]:
    """Return what trainings take where they are placed."""
    advice = "a smaller batch (--batch-size) or shorter examples (--max-length), or a machine with more memory"
    demands = []
    for title, (choice, peak) in trainings.items():
        sizes = (0, peak.device) if peak.on_cpu else (peak.device, peak.host)
        elsewhere = (
            "--placement host-moments, "
            if (choice.placement, choice.processes) == ("device", 1) and not peak.on_cpu
            else ""
        )
        demands.append(Demand(title, *sizes, elsewhere + advice))
    return demands


def training_rows(trainings: Mapping[str, tuple[Choice, TrainingPeak]]) -> list[tuple[str, ...]]:
    """Return the rows under `memory.COLUMNS` of trainings, the largest of those that are placed alike."""
    largest: dict[tuple[str, str, int], TrainingPeak] = {}
    for title, (choice, peak) in trainings.items():
        by = re.search(r"x by [\w-]+", title)  # another recovery than full takes another share of the memory
        name = " ".join(title.split(",")[0].split()[:2]) + (by[0][1:] if by else "")
        alike = (name, choice.placement, choice.processes)
        if alike not in largest or peak.device > largest[alike].device:
            largest[alike] = peak
    rows = []
    for (title, placement, processes), peak in largest.items():
        sizes = (peak.device, 0) if peak.on_cpu else (peak.host, peak.device)
        model = placement if processes == 1 else f"{placement}, {processes} processes"
        rows.append((title, model, *(f"{size / _GIB:.1f}" if size else "" for size in sizes), ""))
    return rows


def evaluation_demands(needs: Mapping[str, Footprint], device: str) -> list[Demand]:
    """Return what the evaluations of the uncompressed model take."""
    demands = []
    for variant, need in needs.items():
        least = need.weights + need.token * need.sequence
        sizes = (0, BASE_BYTES + least) if device == "cpu" else (least, BASE_BYTES)
        smaller = "--dtype bfloat16, or " if need.dtype == "float32" else ""
        demands.append(Demand(f"evaluate {variant}", *sizes, f"{smaller}a machine with more memory"))
    return demands


def judge(machine: Machine, demands: Iterable[Demand], refusals: Iterable[str] = ()) -> str:
    """Return the one sentence about a plan: that it fits and what is closest to the limits, or why it does not.

    Args:
        machine: where.
        demands: of the kinds of stages.
        refusals: sentences on stages for which nothing fits.
    """
    for refusal in refusals:
        return f"does not fit: {refusal}"
    known = list(demands)
    for demand in known:
        for needed, free, memory in (
            (demand.device, machine.device_bytes, f"of GPU memory, and a GPU of {machine.name} has"),
            (demand.host, machine.host_bytes, f"of host memory, and {machine.name} has"),
        ):
            if needed > free:
                return (
                    f"does not fit: {demand.title} needs {needed / _GIB:.1f} GiB {memory} {free / _GIB:.1f}; use "
                    f"{demand.advice}"
                )
    if not known:
        return f"fits: nothing is to do that fills {machine.name}"
    host = max(known, key=lambda demand: demand.host)
    shown = f"{host.host / _GIB:.1f} of {machine.host_bytes / _GIB:.1f} GiB of the host ({host.title})"
    if machine.device != "cpu":
        device = max(known, key=lambda demand: demand.device)
        gpu = f"{device.device / _GIB:.1f} of {machine.device_bytes / _GIB:.1f} GiB of a GPU ({device.title})"
        shown = f"{gpu} and {shown}"
    return f"fits {machine.name} by formula: at most {shown}"
