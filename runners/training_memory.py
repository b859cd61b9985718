"""How much memory a training run takes at its peak, by formula, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Placement = Literal["device", "fsdp2", "host-moments", "8-bit"]
"""Where a training keeps what belongs to its weights.

    device          weights, gradients and moments on the device, in float32
    fsdp2           each of several GPUs holds a share of the three
    host-moments    weights and gradients on the GPU, AdamW's moments in pinned host memory, the same arithmetic
    8-bit           AdamW's moments in 8 bits on the GPU; other arithmetic, so another stage key
"""


@dataclass(frozen=True)
class TrainingPeak:
    """Bytes at the peak of one training process.

    Attributes:
        device: of the GPU that the process has, or of the host where it trains on the CPU.
        host: of the host's memory beside it; the sum over all processes where several train together.
    """

    device: int
    host: int
